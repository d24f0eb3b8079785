"""Training steps of a small model, on a CPU or a GPU, as the trainer takes them."""

from dataclasses import replace

import numpy as np
from tiny_bert import CONFIG, IGNORED, T, V

import lucid
from lucid.backend import CPU, synchronise
from lucid.data import Batch
from lucid.distributed import DistributedDataParallel
from lucid.gpu_async import HostCopy
from lucid.models import BERTForPreTraining
from lucid.optim import AdamW, clip_scale, global_norm
from lucid.training.graphs import GraphedMicroBatches
from lucid.training.micro_batches import LocalBatch, MicroBatches

MLM_WEIGHT, NSP_WEIGHT = 0.1, 0.2


def batches(seed, count, rows, packed=False):
    """Yield global batches of `rows` samples, as the sampler makes them: one sequence in each, or two."""
    generator, places = np.random.default_rng(seed), np.arange(T)
    for _ in range(count):
        ids = generator.integers(1, V, (rows, T))
        ends = T - generator.integers(0, 4, (rows, 1))
        sequence_ids = (places < ends).astype(np.int32)
        if packed:
            sequence_ids += (places >= ends // 2) & (places < ends)
        inside = sequence_ids > 0
        yield Batch(
            input_ids=np.where(inside, ids, 0).astype(np.int32),
            sequence_ids=sequence_ids,
            token_type_ids=generator.integers(0, 2, (rows, T)).astype(np.int32),
            mlm_labels=np.where(inside & (places % 4 == 1), ids, IGNORED).astype(np.int32),
            nsp_labels=generator.integers(0, 2, sequence_ids.max(axis=1).sum()).astype(np.int32),
            samples=np.arange(rows),
        )


class Steps:
    """Steps of this rank on its part of `rows` samples, in micro-batches of at most `micro_batch`.

    On a GPU in bfloat16 unless `rounded` is false.
    """

    def __init__(
        self,
        communicator,
        graphs=True,
        rows=4,
        micro_batch=2,
        rounded=True,
        activation_bytes=0,
        recompute="none",
        optimizer=AdamW,
        sharded=False,
        bucket_megabytes=25.0,
    ):
        lucid.manual_seed(0)
        self.communicator, self.taken, self.micro_batch = communicator, 0, micro_batch
        model = BERTForPreTraining(replace(CONFIG, num_hidden_layers=1)).to(communicator.device)
        is_on_cpu, share = communicator.device == CPU, rows // communicator.size
        self.own = communicator.rank * share, (communicator.rank + 1) * share
        model.bert.encoder.recompute(recompute)
        self.ddp = DistributedDataParallel(
            model, communicator, bucket_megabytes, sharded=sharded, bfloat16_copy=rounded and not is_on_cpu
        )
        self.optimizer = optimizer(self.ddp.partition)
        self.micro_batches = (
            MicroBatches(self.ddp, 3)
            if is_on_cpu
            else GraphedMicroBatches(self.ddp, 3, communicator, graphs, activation_bytes)
        )
        if not is_on_cpu:
            # The next communicator brings a stream of its own, which would not wait for what is under way here.
            synchronise()

    def take(self, batch):
        """Take a step, and return its sums on their way; the last is the gradient's norm."""
        local_batch = LocalBatch.split(batch.slice(*self.own), self.micro_batch)
        sums = self.micro_batches.gradients(local_batch, self.taken, MLM_WEIGHT, NSP_WEIGHT)
        sums[-1] = norm = global_norm(self.ddp.partition)
        self.optimizer.step(1e-3, clip_scale(norm, 1.0))
        self.taken += 1
        return HostCopy(sums)

    def loss(self, sums):
        """Return the loss of the global batch, from the sums of this rank."""
        mlm, _, nsp, *_ = sums.tolist()
        return self.communicator.all_reduce_scalar(mlm * MLM_WEIGHT + nsp * NSP_WEIGHT)
