"""Latents of many samples in whatever form they come, read in blocks of a few latents."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import scipy.sparse
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError

BLOCK = 128  # latents at a time: with 4,000 samples a block is 2 MB


class _Form(Protocol):
    """How latents are stored."""

    shape: tuple[int, int]

    def block(self, first: int, end: int, rows_B: NDArray[np.int64] | None) -> NDArray[np.float32]: ...

    def values(self, rows_B: NDArray[np.int64], latents_B: NDArray[np.int64]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class LatentBlocks:
    """N latents of B samples, which stay as and where they are: NumPy or PyTorch, dense or sparse, CPU or GPU.

    Attributes:
        form: how they are stored.
        rows_B: which samples are meant; all where None.
    """

    form: _Form
    rows_B: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, latents_BN: Any) -> "LatentBlocks":
        """Wrap latents [B, N]: a NumPy array, a SciPy sparse array, or a PyTorch tensor, dense or sparse.

        Raises:
            UserError: another type or another number of dimensions.
        """
        if isinstance(latents_BN, LatentBlocks):
            return latents_BN
        if isinstance(latents_BN, Tensor):
            latents_BN = latents_BN.detach()
            if latents_BN.layout != torch.strided:
                latents_BN = _to_scipy(latents_BN)
        if scipy.sparse.issparse(latents_BN):
            if latents_BN.ndim == 2:
                return cls(_Sparse(latents_BN))
        elif isinstance(latents_BN, Tensor):
            if latents_BN.ndim == 2:
                on_cpu = latents_BN.device.type == "cpu" and latents_BN.dtype != torch.bfloat16
                return cls(_Array(latents_BN.numpy()) if on_cpu else _Tensor(latents_BN))
        elif isinstance(latents_BN, np.ndarray) and latents_BN.ndim == 2:
            return cls(_Array(latents_BN))
        shape = getattr(latents_BN, "shape", type(latents_BN).__name__)
        raise UserError(f"latents {shape} do not fit: a NumPy, SciPy or PyTorch array [samples, latents] is needed")

    @property
    def n_samples(self) -> int:
        """B."""
        return self.form.shape[0] if self.rows_B is None else len(self.rows_B)

    @property
    def n_latents(self) -> int:
        """N."""
        return self.form.shape[1]

    def only(self, rows_B: NDArray[np.int64]) -> "LatentBlocks":
        """Return some of the samples; nothing is copied."""
        return replace(self, rows_B=rows_B if self.rows_B is None else self.rows_B[rows_B])

    def block(self, first: int, end: int) -> NDArray[np.float32]:
        """Return latents_NB from the first to before the end, contiguous; a view where they are stored so."""
        return self.form.block(first, end, self.rows_B)

    def values(self, samples_B: NDArray[np.int64], latents_B: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return one value for each pair of a sample and a latent."""
        return self.form.values(samples_B if self.rows_B is None else self.rows_B[samples_B], latents_B)


class _Array:
    """A dense NumPy array, in rows or in columns."""

    def __init__(self, latents_BN: NDArray) -> None:
        self.latents_BN, self.shape = latents_BN, (latents_BN.shape[0], latents_BN.shape[1])

    def block(self, first: int, end: int, rows_B: NDArray[np.int64] | None) -> NDArray[np.float32]:
        part_BN = self.latents_BN[:, first:end]
        if part_BN.flags.f_contiguous or end - first == 1:
            latents_NB = part_BN.T if rows_B is None else part_BN.T[:, rows_B]
            return np.ascontiguousarray(latents_NB, dtype=np.float32)
        part_BN = part_BN.astype(np.float32, copy=False)
        n_samples = len(part_BN) if rows_B is None else len(rows_B)
        latents_NB = np.empty((end - first, n_samples), np.float32)
        _transpose(part_BN, np.arange(n_samples) if rows_B is None else rows_B, latents_NB)
        return latents_NB

    def values(self, rows_B: NDArray[np.int64], latents_B: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.latents_BN[rows_B, latents_B].astype(np.float32, copy=False)


class _Tensor:
    """A dense tensor that NumPy cannot see: on a GPU, or in bfloat16. Blocks are brought over as they are needed."""

    def __init__(self, latents_BN: Tensor) -> None:
        self.latents_BN, self.shape = latents_BN, (latents_BN.shape[0], latents_BN.shape[1])

    def block(self, first: int, end: int, rows_B: NDArray[np.int64] | None) -> NDArray[np.float32]:
        part_BN = self.latents_BN[:, first:end]
        if rows_B is not None:
            part_BN = part_BN[torch.from_numpy(rows_B).to(part_BN.device)]
        return part_BN.float().t().contiguous().cpu().numpy()

    def values(self, rows_B: NDArray[np.int64], latents_B: NDArray[np.int64]) -> NDArray[np.float32]:
        rows, latents = (torch.from_numpy(index).to(self.latents_BN.device) for index in (rows_B, latents_B))
        return self.latents_BN[rows, latents].float().cpu().numpy()


class _Sparse:
    """A sparse array in compressed columns."""

    def __init__(self, latents_BN: Any) -> None:
        self.latents_BN, self.shape = scipy.sparse.csc_matrix(latents_BN), latents_BN.shape

    def block(self, first: int, end: int, rows_B: NDArray[np.int64] | None) -> NDArray[np.float32]:
        latents_NB = np.ascontiguousarray(self.latents_BN[:, first:end].T.toarray(), dtype=np.float32)
        return latents_NB if rows_B is None else np.ascontiguousarray(latents_NB[:, rows_B])

    def values(self, rows_B: NDArray[np.int64], latents_B: NDArray[np.int64]) -> NDArray[np.float32]:
        if len(rows_B) == 0:
            return np.empty(0, np.float32)
        return np.asarray(self.latents_BN[rows_B, latents_B], np.float32).reshape(-1)


def _to_scipy(latents_BN: Tensor) -> Any:
    coo = latents_BN.to_sparse_coo().coalesce().cpu()
    rows_and_latents = coo.indices().numpy()
    return scipy.sparse.coo_array((coo.values().float().numpy(), tuple(rows_and_latents)), shape=tuple(coo.shape))


@njit(nogil=True, cache=True)
def _transpose(latents_BN, rows_B, latents_NB):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Write some rows as columns, 16 at a time, so that both sides are read and written by whole cache lines."""
    for start in range(0, len(rows_B), 16):
        end = min(start + 16, len(rows_B))
        for n in range(len(latents_NB)):
            for b in range(start, end):
                latents_NB[n, b] = latents_BN[rows_B[b], n]
