"""The labelled examples of a task: texts or pairs with a label each, or sentences with a label for each word."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from lucid.data.labelled import in_order, read_labelled
from lucid.errors import DataError
from lucid.finetuning.token_labels import holds_words, read_token_labels


@dataclass(frozen=True)
class Examples:
    """The examples of the file `path`, in its order.

    Without `by_word`, `texts` are strings, `pairs` the second texts if there are any, and `labels` has a list of one
    label for each. With `by_word` a text is a list of words, and `labels` has a label for each word. `remarks` says
    what is left out.
    """

    path: Path
    texts: Sequence[str | list[str]]
    labels: Sequence[Sequence[str]]
    by_word: bool
    pairs: list[str] | None = None
    remarks: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, numbers: Sequence[int]) -> "Examples":
        """Return some of the examples."""
        texts, labels = [self.texts[number] for number in numbers], [self.labels[number] for number in numbers]
        return replace(self, texts=texts, labels=labels, pairs=self.pairs and [self.pairs[each] for each in numbers])

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each label occurs."""
        return Counter(label for labels in self.labels for label in labels)


@dataclass(frozen=True)
class Task:
    """The examples to train on and those to test on, and perhaps others, to choose a learning rate on."""

    train: Examples
    test: Examples
    validation: Examples | None = None

    @property
    def files(self) -> list[Examples]:
        """The examples of all files."""
        return [self.train, self.test, *([self.validation] if self.validation is not None else [])]

    @property
    def by_word(self) -> bool:
        """Whether words have labels, not whole texts."""
        return self.train.by_word

    @cached_property
    def labels(self) -> list[str]:
        """The labels of the training examples, in the order of their ids."""
        return in_order(self.train.counts)

    @property
    def commonest(self) -> int:
        """The id of the label that is the most frequent one in training."""
        return max(range(len(self.labels)), key=lambda number: self.train.counts[self.labels[number]])

    @property
    def remarks(self) -> list[str]:
        """Sentences about what is left out, and about labels that no model can learn."""
        found = [remark for examples in self.files for remark in examples.remarks]
        for examples in self.files[1:]:
            if unseen := [label for label in in_order(examples.counts) if label not in self.train.counts]:
                count = sum(examples.counts[label] for label in unseen)
                found.append(
                    f"{examples.path} has labels that {self.train.path} lacks, such as {unseen[0]!r} ({count:,} in "
                    "all): no model can predict them"
                )
        return found


def read_task(
    train: Path,
    test: Path,
    validation: Path | None = None,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
) -> Task:
    """Read the files of a task. `text`, `pair` and `label` name columns or fields, as for `read_labelled`.

    Words have labels in a .jsonl file whose labels are lists, and in a file of columns (`read_token_labels`). Raises
    `DataError` if a file cannot be read, or if there is nothing to tell apart.
    """
    first, *others = [_read(path, text, pair, label) for path in (train, test, validation) if path is not None]
    for other in others:
        _check_same_kind(first, other)
    task = Task(first, *others)
    if len(task.labels) < 2:
        raise DataError(f"all labels of {train} are {task.labels[0]!r}: there is nothing to tell apart")
    return task


def _check_same_kind(train: Examples, other: Examples) -> None:
    if train.by_word != other.by_word:
        kinds = ["each word" if examples.by_word else "whole texts" for examples in (train, other)]
        raise DataError(f"{train.path} has labels for {kinds[0]}, {other.path} for {kinds[1]}: take files of one kind")
    if (train.pairs is None) != (other.pairs is None):
        which = train if other.pairs is None else other
        raise DataError(f"only {which.path} has pairs of texts: take files of one kind")


def _read(path: Path, text: str | None, pair: str | None, label: str | None) -> Examples:
    if holds_words(path, label):
        if pair is not None:
            raise DataError(f"{path} has a label for each word, so it has no pairs: leave out --pair")
        words, labels, remarks = read_token_labels(path, text, label)
        return Examples(path, words, labels, by_word=True, remarks=remarks)
    rows = read_labelled(path, text=text, pair=pair, label=label)
    return Examples(
        path, rows.texts, [[name] for name in rows.labels], by_word=False, pairs=rows.pairs, remarks=rows.remarks
    )
