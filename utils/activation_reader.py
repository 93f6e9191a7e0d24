"""Shuffled batches of cached activations for training: read ahead in the background, and handed to the GPU."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.activation_cache import ActivationSplit
from utils.index_shuffle import IndexShuffle

_THREADS = 2
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Batch:
    """The rows of one step, in ascending order, with their activations and labels on the device.

    Attributes:
        rows_B: their numbers in the split.
        acts_BD: as stored, float16 or float32.
        labels_BC: int8.
    """

    rows_B: NDArray[np.int64]
    acts_BD: Tensor
    labels_BC: Tensor


class ActivationReader:
    """Goes through a split in a random order that seed and epoch alone decide, whatever its shards.

    Step t of an epoch takes the next `batch_size * world_size` rows of that order; of these, each process takes its
    own, so that processes never share a row. The rows that fill no step are left out; every epoch has others.
    Nothing of the order is stored, and of the activations only a few batches.

    Args:
        split: the rows.
        batch_size: rows of a step in this process.
        seed: of the order.
        device: where the batches go.
        rank: this process, of `world_size`.
        world_size: how many processes read.
    """

    def __init__(
        self,
        split: ActivationSplit,
        batch_size: int,
        seed: int,
        *,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.device = torch.device(device)
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self.split) // (self.batch_size * self.world_size)

    def rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return the rows of one step, ascending."""
        start = (step * self.world_size + self.rank) * self.batch_size
        order = IndexShuffle(len(self.split), self.seed, epoch)
        return np.sort(order(np.arange(start, start + self.batch_size)))

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from any step on."""
        steps = iter(range(first_step, len(self)))
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(_THREADS) as ahead:
            try:
                while True:
                    while len(waiting) < _BATCHES_AHEAD and (step := next(steps, None)) is not None:
                        waiting.append(ahead.submit(self._read, epoch, step))
                    if not waiting:
                        return
                    batch = waiting.popleft().result()
                    acts_BD, labels_BC = (
                        tensor.to(self.device, non_blocking=True) for tensor in (batch.acts_BD, batch.labels_BC)
                    )
                    yield Batch(batch.rows_B, acts_BD, labels_BC)
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, epoch: int, step: int) -> Batch:
        """Read one batch into memory that a GPU copies from without waiting."""
        rows_B = self.rows(epoch, step)
        acts_BD = torch.from_numpy(self.split.take("acts", rows_B))
        labels_BC = torch.from_numpy(self.split.take("label", rows_B))
        if self.device.type == "cuda":
            acts_BD, labels_BC = acts_BD.pin_memory(), labels_BC.pin_memory()
        return Batch(rows_B, acts_BD, labels_BC)
