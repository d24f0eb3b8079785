"""Which algorithms make a run's products on GPUs: the same on all ranks where that can be, and again when it goes on.

Algorithms are chosen by time (`kernels/cuda/algorithms.py`), and a choice may change the last bits. So choices are
recorded in checkpoints, by kind of card and by rank: a run that goes on has the same bits wherever that is. A product
that the run has not met before is made as the first rank's machine has kept it, on all ranks with a card like the first
rank's. Products that are new after that are timed where they are met, once on each machine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

from pydantic import Field

from lucid.backend import CPU, device_of
from lucid.distributed import Communicator, DistributedDataParallel, broadcast_text, gather_texts, run_on_first_rank
from lucid.files import parse_dataclass

# By product: the number of its algorithm, or None for the library's own choice.
Choices = dict[str, Annotated[int, Field(ge=0)] | None]
# By kind of card.
OfCards = dict[str, Choices]


@dataclass(frozen=True)
class ProductChoices:
    """The choices of all ranks. Where no algorithm is timed there are none.

    `of_all` holds what the ranks with one kind of card have in common; `of_ranks` holds, by rank, what differs there.
    """

    of_all: OfCards = field(default_factory=dict)
    of_ranks: dict[str, OfCards] = field(default_factory=dict)

    def of(self, rank: int) -> OfCards:
        """Return the choices of one rank, by kind of card."""
        own = self.of_ranks.get(str(rank), {})
        return {card: {**self.of_all.get(card, {}), **own.get(card, {})} for card in {**self.of_all, **own}}


def times_products(ddp: DistributedDataParallel[Any]) -> bool:
    """Return whether training makes products by timed algorithms.

    Under the exact reduction it does not: a run there has the same bits on any machine, whatever algorithms were the
    fastest on another.
    """
    return device_of(ddp.flat.values) != CPU and not ddp.is_exact


@dataclass(frozen=True)
class _Given:
    """What the first rank gives to all: what the run has recorded, and what its own machine has kept for its card."""

    recorded: ProductChoices
    kept: OfCards


def take_first_ranks_choices(communicator: Communicator, recorded: ProductChoices | None) -> None:
    """Let all ranks make products as the run did before, and new ones as the first rank's machine has kept them.

    `recorded` are the choices that the run has had before, on the first rank alone. All ranks call this, each with a
    GPU.
    """
    from lucid.kernels.cuda import algorithms, plans

    def given() -> str:
        card = plans.card_of(communicator.device)
        return json.dumps(asdict(_Given(recorded or ProductChoices(), {card: algorithms.kept(card)})))

    first = parse_dataclass(_Given, run_on_first_rank(communicator, given).encode())
    plans.give_choices(first.recorded.of(communicator.rank), first.kept)


def choices_so_far(communicator: Communicator) -> ProductChoices:
    """Return the choices of all ranks, for a checkpoint. All ranks call this, each with a GPU.

    Ranks have most choices in common. So one rank with each kind of card tells all ranks its own, and the others send
    only what differs from these.
    """
    from lucid.kernels.cuda import algorithms, plans

    own, cards = algorithms.used(), gather_texts(communicator, plans.card_of(communicator.device))
    told: OfCards = json.loads(broadcast_text(communicator, json.dumps(own)))
    for card in dict.fromkeys(cards[1:]):
        if card != cards[0]:
            told[card] = json.loads(broadcast_text(communicator, json.dumps(own.get(card, {})), root=cards.index(card)))
    different = differences(own, told)
    texts = gather_texts(communicator, json.dumps(different) if different else "")
    return merged(told, [json.loads(text) if text else {} for text in texts])


def differences(own: Mapping[str, Choices], others: Mapping[str, Choices]) -> OfCards:
    """Return the choices in `own` that `others` does not have, or has otherwise."""
    found = {}
    for card, choices in own.items():
        known = others.get(card, {})
        # None is a choice, too.
        different = choices.items() - known.items()
        if different:
            found[card] = dict(sorted(different))
    return found


def merged(told: Mapping[str, Choices], of_ranks: Sequence[Mapping[str, Choices]]) -> ProductChoices:
    """Return the choices that all ranks were told together with those of each rank that differ.

    A choice that was not told is that of the lowest rank which has it.
    """
    of_all: OfCards = {card: dict(choices) for card, choices in told.items()}
    for choices in of_ranks:
        for card, different in choices.items():
            of_all[card] = {**different, **of_all.get(card, {})}
    own = {str(rank): differences(choices, of_all) for rank, choices in enumerate(of_ranks)}
    return ProductChoices(of_all, {rank: choices for rank, choices in own.items() if choices})
