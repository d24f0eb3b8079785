"""Algorithms of a run's matrix products on GPUs: the same on all ranks where possible, and the same after a resume.

Algorithms are chosen by time (`kernels/cuda/algorithms.py`), and a choice may change the last bits of results. So
checkpoints record the choices, by GPU model and by rank, and a resumed run gets the same bits on any machine. For a
product that is new to the run, ranks whose GPU is of the first rank's model take the choice that the first rank's
machine has stored. Any other product is timed when it first occurs, once on each machine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field

from lucid.backend import CPU, device_of
from lucid.distributed import Communicator, DistributedDataParallel, broadcast_text, gather_texts, run_on_first_rank
from lucid.json_values import parse_dataclass

# The number of each product's algorithm; None: the library's own choice.
Choices = dict[str, Annotated[int, Field(ge=0)] | None]
# By GPU model.
OfCards = dict[str, Choices]


@dataclass(frozen=True)
class ProductChoices:
    """The choices of all ranks; empty if no algorithm is timed.

    `of_all` has the common choices of ranks with one GPU model; `of_ranks` has the choices of each rank that differ.
    """

    of_all: OfCards = field(default_factory=dict)
    of_ranks: dict[str, OfCards] = field(default_factory=dict)

    def of(self, rank: int) -> OfCards:
        """Return the choices of one rank, by GPU model."""
        own = self.of_ranks.get(str(rank), {})
        return {card: {**self.of_all.get(card, {}), **own.get(card, {})} for card in {**self.of_all, **own}}


def times_products(ddp: DistributedDataParallel[Any]) -> bool:
    """Return whether training computes products by timed algorithms.

    It does not under the exact reduction, which gives the same bits on any machine, whatever algorithms are fastest.
    """
    return device_of(ddp.flat.values) != CPU and not ddp.is_exact


@dataclass(frozen=True)
class _Given:
    """The choices that the first rank sends: those in the checkpoint, and those stored on its machine for its GPU."""

    recorded: ProductChoices
    kept: OfCards


def take_first_ranks_choices(communicator: Communicator, recorded: ProductChoices | None) -> None:
    """Let all ranks compute products as the run did before, and new ones as stored on the first rank's machine.

    `recorded` are the choices of the checkpoint, on the first rank alone. All ranks call this, each with a GPU.
    """
    from lucid.kernels.cuda import algorithms, plans

    def given() -> str:
        card = plans.card_of(communicator.device)
        return json.dumps(asdict(_Given(recorded or ProductChoices(), {card: algorithms.kept(card)})))

    first = parse_dataclass(_Given, run_on_first_rank(communicator, given).encode())
    plans.give_choices(first.recorded.of(communicator.rank), first.kept)


def choices_so_far(communicator: Communicator) -> ProductChoices:
    """Return the choices of all ranks, for a checkpoint. All ranks call this, each with a GPU.

    Ranks have most choices in common. So one rank of each GPU model sends its own to all ranks, and the others send
    only those that differ.
    """
    from lucid.kernels.cuda import algorithms, plans

    own, cards = algorithms.used(), gather_texts(communicator, plans.card_of(communicator.device))
    common: OfCards = json.loads(broadcast_text(communicator, json.dumps(own)))
    for card in dict.fromkeys(cards[1:]):
        if card != cards[0]:
            common[card] = json.loads(
                broadcast_text(communicator, json.dumps(own.get(card, {})), root=cards.index(card))
            )
    different = differences(own, common)
    texts = gather_texts(communicator, json.dumps(different) if different else "")
    return merged(common, [json.loads(text) if text else {} for text in texts])


def differences(own: Mapping[str, Choices], others: Mapping[str, Choices]) -> OfCards:
    """Return the choices in `own` that are missing or different in `others`."""
    found = {}
    for card, choices in own.items():
        known = others.get(card, {})
        # None is a valid choice.
        different = choices.items() - known.items()
        if different:
            found[card] = dict(sorted(different))
    return found


def merged(common: Mapping[str, Choices], of_ranks: Sequence[Mapping[str, Choices]]) -> ProductChoices:
    """Return the `common` choices together with the different ones of each rank.

    A product without a common choice gets the choice of the lowest rank that has one.
    """
    of_all: OfCards = {card: dict(choices) for card, choices in common.items()}
    for choices in of_ranks:
        for card, different in choices.items():
            of_all[card] = {**different, **of_all.get(card, {})}
    own = {str(rank): differences(choices, of_all) for rank, choices in enumerate(of_ranks)}
    return ProductChoices(of_all, {rank: choices for rank, choices in own.items() if choices})
