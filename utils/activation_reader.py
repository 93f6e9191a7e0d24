"""Shuffled batches of cached activations for training: read ahead in the background, and handed to the GPU."""

import sys
import threading
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
_STEPS_AT_ONCE = 4  # a thread's task; handing over single batches would take as long as reading them


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


class _Buffers:
    """Arrays of one shape that are used again once nobody refers to them.

    Fresh memory for every batch would cost more time than reading it, as the system hands it out page by page.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str) -> None:
        self._shape, self._dtype = shape, dtype
        self._arrays: list[NDArray] = []
        self._lock = threading.Lock()

    def get(self) -> NDArray:
        """Return an array with whatever values."""
        with self._lock:
            for array in self._arrays:
                # The list, the loop and the call itself refer to it; so would a tensor made from it, or its view.
                if sys.getrefcount(array) == 3:
                    return array
            self._arrays.append(np.empty(self._shape, self._dtype))
            return self._arrays[-1]


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
        self._newest: tuple[int, IndexShuffle] | None = None
        self._buffers = _Buffers((batch_size, split.d_model), split.dtype)

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self.split) // (self.batch_size * self.world_size)

    def rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return the rows of one step, ascending."""
        return self._rows(epoch, step * self.world_size + self.rank, 1)

    def all_rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Return the rows of one step in all processes, ascending."""
        return self._rows(epoch, step * self.world_size, self.world_size)

    def _rows(self, epoch: int, first_part: int, n_parts: int) -> NDArray[np.int64]:
        places = np.arange(first_part * self.batch_size, (first_part + n_parts) * self.batch_size)
        return np.sort(self._order(epoch)(places))

    def _order(self, epoch: int) -> IndexShuffle:
        newest = self._newest
        if newest is None or newest[0] != epoch:
            newest = self._newest = (epoch, IndexShuffle(len(self.split), self.seed, epoch))
        return newest[1]

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from any step on."""
        starts = iter(range(first_step, len(self), _STEPS_AT_ONCE))
        waiting: deque[Future[list[Batch]]] = deque()
        with ThreadPoolExecutor(_THREADS) as ahead:
            try:
                while True:
                    while len(waiting) <= _THREADS and (start := next(starts, None)) is not None:
                        steps = range(start, min(start + _STEPS_AT_ONCE, len(self)))
                        waiting.append(ahead.submit(self._read, epoch, steps))
                    if not waiting:
                        return
                    for batch in waiting.popleft().result():
                        yield self._on_device(batch)
            finally:
                for future in waiting:
                    future.cancel()

    def _read(self, epoch: int, steps: range) -> list[Batch]:
        """Read some batches into memory that a GPU copies from without waiting."""
        return [self._read_one(self.rows(epoch, step)) for step in steps]

    def _read_one(self, rows_B: NDArray[np.int64]) -> Batch:
        if self.device.type == "cuda":  # PyTorch keeps and reuses pinned memory by itself
            dtype = getattr(torch, self.split.dtype)
            acts_BD = torch.empty((len(rows_B), self.split.d_model), dtype=dtype, pin_memory=True)
            labels_BC = torch.empty((len(rows_B), self.split.n_concepts), dtype=torch.int8, pin_memory=True)
            self.split.take("acts", rows_B, out=acts_BD.numpy())
            self.split.take("label", rows_B, out=labels_BC.numpy())
            return Batch(rows_B, acts_BD, labels_BC)
        acts_BD = torch.from_numpy(self.split.take("acts", rows_B, out=self._buffers.get()))
        return Batch(rows_B, acts_BD, torch.from_numpy(self.split.take("label", rows_B)))

    def _on_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        acts_BD, labels_BC = (tensor.to(self.device, non_blocking=True) for tensor in (batch.acts_BD, batch.labels_BC))
        return Batch(batch.rows_B, acts_BD, labels_BC)
