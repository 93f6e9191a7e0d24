"""A finished cache of labelled activations: opened, checked against its manifest, read by rows and by batches."""

from collections.abc import Iterator
from copy import copy
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from utils.activation_store import FORMAT, TokenRows, read_shard, row_features
from utils.atomic import read_json_object, sha256_file
from utils.errors import UserError

EVALUATION_SPLITS = ("test", "valid", "validation")


class ActivationCache:
    """The splits of a cache folder.

    Attributes:
        folder: where it lies.
        manifest: what made it (model, block, site, concepts, counts, checksums).

    Raises:
        UserError: no cache there, or one of a newer format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            if self.folder.with_name(f".building-{self.folder.name}").is_dir():
                raise UserError(f"{folder}: this cache is still being written; let act_dataset.py finish it first")
            raise UserError(f"{folder}: no cached activations there; make them with create_data/act_dataset.py")
        needed = ("dataset", "concepts", "model", "revision", "block", "site", "dtype", "d_model", "splits")
        self.manifest: dict[str, Any] = read_json_object(self.folder / "manifest.json", needed, FORMAT)
        self._splits: dict[str, ActivationSplit] = {}

    @property
    def concepts(self) -> list[str]:
        """The concepts in the order of the label columns."""
        return list(self.manifest["concepts"])

    @property
    def d_model(self) -> int:
        """The width of an activation."""
        return int(self.manifest["d_model"])

    @property
    def checksum(self) -> str:
        """The SHA-256 of the manifest, which holds the checksum of every shard."""
        return sha256_file(self.folder / "manifest.json")

    def split(self, name: str) -> "ActivationSplit":
        """Open a split.

        Raises:
            UserError: the cache has no such split, or a shard is damaged.
        """
        if name not in self.manifest["splits"]:
            raise UserError(f"{self.folder}: no split {name!r}; it has {', '.join(self.manifest['splits'])}")
        if name not in self._splits:
            self._splits[name] = ActivationSplit(self, name)
        return self._splits[name]

    def evaluation_split(self) -> str | None:
        """Return the name of the split for evaluation: test, else the validation split, else None."""
        return next((name for name in EVALUATION_SPLITS if name in self.manifest["splits"]), None)


class ActivationSplit:
    """One split: its shards, mapped into memory, seen as one run of rows."""

    def __init__(self, cache: ActivationCache, name: str) -> None:
        entry = cache.manifest["splits"][name]
        self.name, self.d_model, self.dtype = name, cache.d_model, str(cache.manifest["dtype"])
        features = row_features(self.d_model, len(cache.concepts), self.dtype)
        shards = [read_shard(cache.folder / name / shard["file"], features) for shard in entry["shards"]]
        self._columns = {field.name: [getattr(shard, field.name) for shard in shards] for field in fields(TokenRows)}
        self._starts = np.cumsum([0] + [len(shard) for shard in shards])
        if len(self) != entry["tokens"]:
            raise UserError(
                f"{cache.folder / name}: {len(self)} rows instead of {entry['tokens']}; make the cache anew"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def n_concepts(self) -> int:
        """The number of label columns."""
        return int(self._columns["label"][0].shape[1])

    @cached_property
    def label_BC(self) -> NDArray[np.int8]:
        """The labels of all rows."""
        return np.concatenate(self._columns["label"])

    @cached_property
    def text_id_B(self) -> NDArray[np.int32]:
        """The text of each row, by its index in the split."""
        return np.concatenate(self._columns["text_id"])

    def with_labels(self, label_BC: NDArray[np.int8]) -> "ActivationSplit":
        """Return the same split with other labels."""
        other = copy(self)
        other._columns = self._columns | {"label": np.split(label_BC, self._starts[1:-1])}
        other.__dict__.pop("label_BC", None)
        return other

    def take(self, column: str, ascending_B: NDArray[np.integer], out: NDArray | None = None) -> NDArray:
        """Return a column's values at some rows, as they are stored; the rows must ascend.

        Args:
            column: a field of `TokenRows`.
            ascending_B: the rows.
            out: where to put the values, [B, ...] of the column's type.
        """
        values = self._columns[column]
        if out is None:
            out = np.empty((len(ascending_B), *values[0].shape[1:]), values[0].dtype)
        end = 0
        for shard, end_of_shard in enumerate(np.searchsorted(ascending_B, self._starts[1:]).tolist()):
            start, end = end, end_of_shard
            if start < end:
                # "clip" as numpy takes through a buffer otherwise; every row is in range.
                local_B = ascending_B[start:end] - self._starts[shard]
                np.take(values[shard], local_B, axis=0, out=out[start:end], mode="clip")
        return out

    def acts(self, rows_B: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return acts_BD of the given rows, in their order, as float32."""
        order_B = np.argsort(rows_B)
        stored_BD = torch.from_numpy(self.take("acts", rows_B[order_B]))
        acts_BD = torch.empty(stored_BD.shape, dtype=torch.float32)
        acts_BD[torch.from_numpy(order_B)] = stored_BD.float()
        return acts_BD.numpy()

    def batches(self, batch_size: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Go through all rows in order; yields (rows, acts_BD)."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, min(start + batch_size, len(self)))
            yield rows, self.acts(np.arange(rows.start, rows.stop))
