"""Fine-tunes several models on the same examples, with several seeds each, and compares them on the test examples."""

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from lucid import random
from lucid.backend import Array
from lucid.data.permutation import Permutation
from lucid.distributed import Communicator, DistributedDataParallel, all_or_none
from lucid.errors import ConfigError
from lucid.finetuning.bootstrap import Difference, difference, resampled_values
from lucid.finetuning.encoding import Encoded, encode
from lucid.finetuning.examples import Examples, Task
from lucid.finetuning.metrics import Metric, metrics_of
from lucid.finetuning.tuning import Classifier, Recipe, fine_tune, predict
from lucid.models.bert.classification import BERTForSequenceClassification, BERTForTokenClassification
from lucid.models.bert.config import BERTConfig
from lucid.training.formatting import count

# The rate for the width of BERT-base, within the range of Devlin et al. (2018).
_BASE_RATE, _BASE_WIDTH = 5e-5, 768
# Without examples for it, one training example in so many measures which learning rate is the best.
_HELD_OUT = 10


@dataclass(frozen=True)
class Contender:
    """A model of the comparison: its tokenizer, and the `weights` of its encoder by name; none are random ones.

    What it lacks of an encoder begins anew with each seed.
    """

    name: str
    config: BERTConfig
    tokenizer: Tokenizer
    weights: Mapping[str, Array]

    @property
    def default_rate(self) -> float:
        """The learning rate for its width: it falls with the width, as Adam's best rate does.

        Width 768 has 5e-5. Turc et al. ("Well-read students learn better", 2019) took up to 3e-4 for BERTs of width
        128, for which this gives 3e-4; Yang et al. ("Tensor programs V", 2022) derive the rule.
        """
        return _BASE_RATE * _BASE_WIDTH / self.config.hidden_size

    def from_scratch(self) -> "Contender":
        """Return a model of the same shape with random weights."""
        return replace(self, name=f"{self.name} from scratch", weights={})

    def initial(self, kind: type[Classifier], labels: Sequence[str], seed: int) -> Classifier:
        """Return the classifier before fine-tuning with `seed`."""
        random.manual_seed(seed)
        model = kind(self.config, labels)
        state = model.state_dict()
        model.load_state_dict({**state, **{name: array for name, array in self.weights.items() if name in state}})
        return model


@dataclass(frozen=True)
class Result:
    """What became of a contender: its metrics, the first of which counts, and how it was trained.

    `skipped` updates of all seeds had gradients that were not finite. `cut_off` words of the test had no prediction.
    `state` holds the weights of the first seed, if they were asked for.
    """

    contender: Contender
    recipe: Recipe
    metrics: list[Metric]
    skipped: int
    cut_off: int
    state: dict[str, np.ndarray] | None

    @property
    def mean(self) -> float:
        """The mean over seeds of the metric that counts."""
        return float(np.mean(self.metrics[0].of_seeds()))


@dataclass(frozen=True)
class Comparison:
    """Fine-tunes contenders on the examples of a task. All ranks of `communicator` have the same.

    `rates` are the learning rates to choose from; without any each contender has its default. Texts are cut to
    `longest` tokens. `begin` is called with a contender's name, what is trained, and its number of steps before each
    training; what it returns, after each step.
    """

    task: Task
    recipe: Recipe
    rates: Sequence[float]
    seeds: int
    longest: int
    communicator: Communicator
    begin: Callable[[str, str, int], Callable[[], object]] = lambda *_: lambda: None

    @property
    def kind(self) -> type[Classifier]:
        """The class of the classifiers."""
        return BERTForTokenClassification if self.task.by_word else BERTForSequenceClassification

    def result_of(self, contender: Contender, keep: bool = False) -> Result:
        """Fine-tune a contender with each seed, and return how good it is. All ranks call this.

        With `keep` the result holds the weights of the first seed. Raises an agreed `ConfigError` if the model takes no
        pairs, or if there are too few examples for the ranks or for a choice between learning rates.
        """
        # The model before this one, whose parameters and flat buffers refer to each other, goes before the next comes.
        gc.collect()
        train, test, validation = all_or_none(self.communicator, lambda: self._encoded(contender))
        model = contender.initial(self.kind, self.task.labels, seed=0).to(self.communicator.device)
        ddp = DistributedDataParallel(model, self.communicator)
        recipe = replace(self.recipe, learning_rate=self._rate(contender, ddp, train, validation))
        predictions, skipped, state = [], 0, None
        for seed in range(self.seeds):
            skipped += self._trained(contender, ddp, train, recipe, seed, f"seed {seed + 1} of {self.seeds}")
            predictions.append(self._predicted(model, test))
            if keep and seed == 0:
                state = {name: array.copy() for name, array in model.state_dict().items()}
        metrics = metrics_of(self.task.test, self.task.labels, predictions)
        return Result(contender, recipe, metrics, skipped, len(test.cut_off), state)

    def _encoded(self, contender: Contender) -> tuple[Encoded, Encoded, Encoded | None]:
        config, labels = contender.config, self.task.labels
        longest = min(self.longest, config.max_position_embeddings)
        train, test, *validation = (
            encode(examples, labels, contender.tokenizer, longest, config.type_vocab_size)
            for examples in self.task.files
        )
        self._check_number(len(train))
        return train, test, validation[0] if validation else None

    def _check_number(self, examples: int) -> None:
        """Raise `ConfigError` if so many training examples are too few."""
        if len(self.rates) > 1 and self.task.validation is None:
            if examples < _HELD_OUT:
                raise ConfigError(f"{examples} training examples are too few to choose a learning rate on: name one")
            examples -= examples // _HELD_OUT
        size, batch = self.communicator.size, self.recipe.batch(examples)
        if size > batch:
            raise ConfigError(f"there are {size} ranks, but a step has {count(batch, 'example')}: start fewer")

    def _rate(
        self,
        contender: Contender,
        ddp: DistributedDataParallel[Classifier],
        train: Encoded,
        validation: Encoded | None,
    ) -> float:
        """Return the learning rate of a contender: of several, the one that does best on `validation`.

        Without `validation` a part of the training takes its place.
        """
        if len(self.rates) < 2:
            return self.rates[0] if self.rates else contender.default_rate
        examples, rest, held_out = self.task.validation, train, validation
        if examples is None or held_out is None:
            examples, rest, held_out = self._divided(train)
        scores = []
        for rate in self.rates:
            recipe = replace(self.recipe, learning_rate=rate)
            self._trained(contender, ddp, rest, recipe, 0, f"learning rate {rate:g}")
            found = self._predicted(ddp.module, held_out)
            scores.append(metrics_of(examples, self.task.labels, [found])[0].of_seeds()[0])
        return self.rates[int(np.argmax(scores))]

    def _divided(self, train: Encoded) -> tuple[Examples, Encoded, Encoded]:
        """Return the training examples to choose a rate on, the others encoded, and these examples encoded."""
        order = Permutation(len(train), 0, 0).at(np.arange(len(train)))
        bound = len(train) // _HELD_OUT
        held_out, rest = order[:bound], order[bound:]
        return self.task.train.part(held_out.tolist()), train.part(rest), train.part(held_out)

    def _trained(
        self,
        contender: Contender,
        ddp: DistributedDataParallel[Classifier],
        train: Encoded,
        recipe: Recipe,
        seed: int,
        what: str,
    ) -> int:
        """Train the module of `ddp` from its initial weights, and return how many updates were skipped."""
        ddp.module.load_state_dict(contender.initial(self.kind, self.task.labels, seed).state_dict())
        # Hosts of different kinds may differ in the last bits of what they draw.
        self.communicator.broadcast(ddp.flat.values)
        advance = self.begin(contender.name, what, recipe.steps(len(train)))
        return fine_tune(ddp, train, recipe, seed, self.communicator, advance)

    def _predicted(self, model: Classifier, data: Encoded) -> Array:
        return predict(model, data, self.communicator, self.task.commonest)


def differences(results: Sequence[Result]) -> list[list[Difference]]:
    """Return, for each result but the first, the difference of each metric to the first's."""
    found: list[list[Difference]] = [[] for _ in results[1:]]
    for number in range(len(results[0].metrics)):
        metrics = [result.metrics[number] for result in results]
        first, *others = resampled_values(metrics)
        for each, metric, drawn in zip(found, metrics[1:], others, strict=True):
            each.append(difference(metric, metrics[0], drawn, first))
    return found
