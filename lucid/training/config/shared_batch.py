"""How ranks share the global batch of a run."""

from dataclasses import dataclass

from lucid.errors import ConfigError
from lucid.training.config.sections import TrainSettings
from lucid.training.formatting import count

# With `train.balance: speed` a rank gets at most so many times its equal part, which bounds its memory.
_MOST_BY_SPEED = 4


@dataclass(frozen=True)
class SharedBatch:
    """The global batch of a run with the settings `train`, shared by `size` ranks.

    `samples` is the unit of the batch, for messages. All properties but `exact_micro_batches` count in it.
    """

    train: TrainSettings
    size: int
    samples: str

    def check(self) -> None:
        """Raise `ConfigError` unless so many ranks can share the batch, under the reduction of the run."""
        batch, micro_batch = self.train.global_batch, self.train.micro_batch_size
        if self.train.reduction == "exact" and micro_batch:
            leaves = batch // micro_batch
            if self.size & (self.size - 1) or leaves % self.size:
                allowed = [str(2**power) for power in range(leaves.bit_length()) if leaves % 2**power == 0]
                raise ConfigError(
                    f"train.reduction is exact: {leaves} micro-batches (train.global_batch / train.micro_batch) can be "
                    f"summed on {' or '.join(allowed)} ranks, not on {self.size}: start another number, or use "
                    "train.reduction=fast"
                )
        if self.size > batch:
            raise ConfigError(
                f"train.global_batch is {batch}, but {self.size} ranks take at least one of its {self.samples} each: "
                f"start at most {count(batch, 'rank')}, or raise it"
            )

    @property
    def local_batch(self) -> int:
        """The samples of each rank, or the most of any if the ranks cannot have as many each.

        With `train.balance: speed` this is an equal part, and `most_samples` says how many a fast rank may have.
        """
        return -(-self.train.global_batch // self.size)

    @property
    def most_samples(self) -> int:
        """The most samples that a rank may have."""
        if self.train.balance == "length":
            return self.local_batch
        return min(_MOST_BY_SPEED * self.local_batch, self.train.global_batch - self.size + 1)

    @property
    def largest_micro_batch(self) -> int:
        """The most samples that a rank computes at once."""
        return min(self.train.micro_batch_size or self.most_samples, self.most_samples)

    @property
    def micro_batch_of_equal_part(self) -> int:
        """The samples that a rank with an equal part computes at once."""
        return min(self.largest_micro_batch, self.local_batch)

    @property
    def evaluation_batch(self) -> int:
        """The held-out samples that a rank computes at once.

        Under the exact reduction it is the micro-batch, so that the losses have the same bits on any number of ranks.
        """
        if self.train.reduction == "exact":
            return self.largest_micro_batch
        return min(self.largest_micro_batch, -(-self.train.evaluation_samples // self.size))

    @property
    def exact_micro_batches(self) -> int | None:
        """How many micro-batches each rank adds to the exact reduction, None for the fast one."""
        if self.train.reduction == "fast" or self.train.micro_batch_size is None:
            return None
        return self.local_batch // self.train.micro_batch_size
