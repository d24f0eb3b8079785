"""Initial weights, drawn from the seed of `lucid.manual_seed` and the number of calls since."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from lucid import random
from lucid.backend import Array

# The probabilities below minus two and below two standard deviations: SciPy's values, to the last bit.
_BELOW, _ABOVE = 0.022750131948179195, 0.9772498680518208
# Numbers computed at once, so that temporary arrays fit into a core's cache.
_CHUNK = 16_384

# The rational approximations of the Cephes library for the middle and for the tails, highest power first.
_TAIL, _ROOT_OF_TWO_PI = math.exp(-2), 2.50662827463100050242
_MIDDLE_ABOVE = (
    -5.99633501014107895267e1, 9.80010754185999661536e1, -5.66762857469070293439e1, 1.39312609387279679503e1,
    -1.23916583867381258016e0,
)  # fmt: skip
_MIDDLE_BELOW = (
    1.0, 1.95448858338141759834e0, 4.67627912898881538453e0, 8.63602421390890590575e1, -2.25462687854119370527e2,
    2.00260212380060660359e2, -8.20372256168333339912e1, 1.59056225126211695515e1, -1.18331621121330003142e0,
)  # fmt: skip
_TAIL_ABOVE = (
    4.05544892305962419923e0, 3.15251094599893866154e1, 5.71628192246421288162e1, 4.40805073893200834700e1,
    1.46849561928858024014e1, 2.18663306850790267539e0, -1.40256079171354495875e-1, -3.50424626827848203418e-2,
    -8.57456785154685413611e-4,
)  # fmt: skip
_TAIL_BELOW = (
    1.0, 1.57799883256466749731e1, 4.53907635128879210584e1, 4.13172038254672030440e1, 1.50425385692907503408e1,
    2.50464946208309415979e0, -1.42182922854787788574e-1, -3.80806407691578277194e-2, -9.33259480895457427372e-4,
)  # fmt: skip

_draws_weights: ContextVar[bool] = ContextVar("drawing", default=True)


@contextmanager
def without_draws(wanted: bool = True) -> Iterator[None]:
    """Initialise weights to zero inside the block, if `wanted`, because the caller will overwrite them.

    Later draws are the same as if these weights had been drawn.
    """
    token = _draws_weights.set(_draws_weights.get() and not wanted)
    try:
        yield
    finally:
        _draws_weights.reset(token)


def truncated_normal(shape: tuple[int, ...], deviation: float) -> Array:
    """Return float32 from a normal distribution truncated at two standard deviations, as in the original BERT."""
    coordinates = random.coordinates_by_hand(rows=1)
    if not _draws_weights.get():
        return zeros(*shape)
    count = int(np.prod(shape))
    words = random.random_words(random.Purpose.BY_HAND, coordinates, count)[0]
    values = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        values[part] = normal_quantile(_BELOW + random.uniform(words[part]) * (_ABOVE - _BELOW)) * deviation
    return values.reshape(shape)


def normal_quantile(probabilities: Array) -> Array:
    """Return the quantiles (float64 [N]) of the standard normal distribution at probabilities [N] (float64).

    The probabilities lie between 1e-13 and 1 - 1e-13; the relative error is below 2e-15. The approximations are those
    of `ndtri` in S. L. Moshier, Cephes Mathematical Library, 1989, which SciPy has too.
    """
    upper = probabilities > 1 - _TAIL
    nearer = np.where(upper, 1 - probabilities, probabilities)
    centred = probabilities - 0.5
    squares = centred * centred
    result = centred + centred * (squares * _polynomial(_MIDDLE_ABOVE, squares) / _polynomial(_MIDDLE_BELOW, squares))
    result *= _ROOT_OF_TWO_PI
    (tail,) = np.nonzero(nearer <= _TAIL)
    root = np.sqrt(-2.0 * np.log(nearer[tail]))
    reciprocal = 1.0 / root
    correction = reciprocal * _polynomial(_TAIL_ABOVE, reciprocal) / _polynomial(_TAIL_BELOW, reciprocal)
    far = root - np.log(root) / root - correction
    result[tail] = np.where(upper[tail], far, -far)
    return result


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value


def zeros(*shape: int) -> Array:
    return np.zeros(shape, dtype=np.float32)


def ones(*shape: int) -> Array:
    return np.ones(shape, dtype=np.float32)
