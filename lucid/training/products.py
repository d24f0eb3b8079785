"""Which algorithms make a run's products on GPUs: the same on all ranks where that can be, and again when it goes on.

Algorithms are chosen by time (`kernels/cuda/algorithms.py`), and a choice may change the last bits. So the first rank's
choices hold for all: at the start they are those of the run that goes on, and else those that its machine has kept.
Products that are new after that are timed where they are met, once on each machine. A checkpoint records what all ranks
have chosen, so that a run that goes on has the same bits wherever that is.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import Field

from lucid.distributed import Communicator, text_of_first, texts_of_all
from lucid.files import parse_dataclass

Choices = dict[str, Annotated[int, Field(ge=0)]]


@dataclass(frozen=True)
class ProductChoices:
    """The numbers of the algorithms that make products on one kind of card, by product.

    `of_ranks` has by rank what differs there. Without any, and where no algorithm is timed, `card` is empty.
    """

    card: str = ""
    of_all: Choices = field(default_factory=dict)
    of_ranks: dict[str, Choices] = field(default_factory=dict)

    def of(self, rank: int) -> Choices:
        return self.of_all | self.of_ranks.get(str(rank), {})


def take_first_ranks_choices(communicator: Communicator, recorded: ProductChoices | None) -> None:
    """Let products be made by timed algorithms, on all ranks by the same ones. All ranks call this, each with a GPU.

    `recorded` are those that the run has had before, on the first rank alone.
    """
    from lucid.kernels.cuda import algorithms, plans

    card = plans.card_of(communicator.device)

    def choices_of_first() -> str:
        before = recorded if recorded is not None and recorded.card == card else ProductChoices(card)
        return json.dumps(asdict(ProductChoices(card, algorithms.kept(card) | before.of_all, before.of_ranks)))

    first = parse_dataclass(ProductChoices, text_of_first(communicator, choices_of_first).encode())
    plans.give_choices(first.card, first.of(communicator.rank))


def choices_so_far(communicator: Communicator) -> ProductChoices:
    """Return the choices of all ranks, for a checkpoint. All ranks call this, each with a GPU."""
    from lucid.kernels.cuda import algorithms, plans

    card = plans.card_of(communicator.device)
    texts = texts_of_all(communicator, json.dumps(algorithms.used(card)))
    return merged(card, [json.loads(text) for text in texts])


def merged(card: str, of_ranks: list[Mapping[str, int]]) -> ProductChoices:
    """Return the choices of all ranks together: where they differ, those of the lowest rank are the ones of all."""
    of_all: dict[str, int] = {}
    for choices in reversed(of_ranks):
        of_all |= choices
    different = {
        str(rank): {product: number for product, number in choices.items() if of_all[product] != number}
        for rank, choices in enumerate(of_ranks)
    }
    return ProductChoices(card, of_all, {rank: choices for rank, choices in different.items() if choices})
