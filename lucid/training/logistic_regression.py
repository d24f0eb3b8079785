"""Logistic regression on fixed features, and its accuracy by cross-validation.

n examples, C features, K classes.
"""

import numpy as np

# Most steps of L-BFGS. Features are standardised, so that these mostly suffice; more would not change predictions much.
_STEPS = 100


def fit(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights [C, K] and biases [K] of a regression on features [n, C] with labels [n] below `classes`.

    They minimise the mean cross-entropy plus the squared norm of the weights / (2 n), as scikit-learn does by default.
    The result is a function of the arguments alone: it starts from zeros, and draws nothing.
    """
    from scipy.optimize import minimize

    n, C = features.shape
    rows = np.arange(n)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:-classes].reshape(C, classes), flat[-classes:]
        scores = features @ weights + bias
        scores -= scores.max(axis=1, keepdims=True)
        exponentials = np.exp(scores)
        sums = exponentials.sum(axis=1, keepdims=True)
        value = (np.log(sums[:, 0]) - scores[rows, labels]).mean() + (weights**2).sum() / (2 * n)
        residuals = exponentials / sums
        residuals[rows, labels] -= 1
        residuals /= n
        gradient = features.T @ residuals + weights / n
        return value, np.concatenate([gradient.reshape(-1), residuals.sum(axis=0)])

    start = np.zeros((C + 1) * classes)
    flat = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return flat[:-classes].reshape(C, classes), flat[-classes:]


def correct_in_fold(features: np.ndarray, labels: np.ndarray, classes: int, held_out: np.ndarray) -> int:
    """Return how many of the `held_out` examples (bool [n]) are predicted by a regression that is fitted to the others.

    Features [n, C] of any floating dtype are standardised by the mean and deviation of the others.
    """
    known, asked = features[~held_out].astype(np.float64), features[held_out].astype(np.float64)
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    deviation[deviation == 0] = 1
    weights, bias = fit((known - mean) / deviation, labels[~held_out], classes)
    predicted = ((asked - mean) / deviation @ weights + bias).argmax(axis=1)
    return int(np.count_nonzero(predicted == labels[held_out]))
