"""A finished cache of labelled activations: opened, checked against its manifest, read by rows and by batches."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.activation_store import FORMAT, read_shard, row_features
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
        features = row_features(cache.d_model, len(cache.concepts), cache.manifest["dtype"])
        self.name = name
        self._shards = [read_shard(cache.folder / name / shard["file"], features) for shard in entry["shards"]]
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])
        if len(self) != entry["tokens"]:
            raise UserError(
                f"{cache.folder / name}: {len(self)} rows instead of {entry['tokens']}; make the cache anew"
            )
        # Small columns are held whole; only the activations stay on disk.
        self.label_BC = np.concatenate([shard.label for shard in self._shards])
        self.text_id_B = np.concatenate([shard.text_id for shard in self._shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def acts(self, rows_B: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return acts_BD of the given rows, in their order, as float32."""
        shard_of_B = np.searchsorted(self._starts, rows_B, side="right") - 1
        acts_BD = np.empty((len(rows_B), self._shards[0].acts.shape[1]), np.float32)
        for shard in np.unique(shard_of_B):
            here = np.flatnonzero(shard_of_B == shard)
            acts_BD[here] = self._shards[shard].acts[rows_B[here] - self._starts[shard]]
        return acts_BD

    def batches(self, batch_size: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Go through all rows in order; yields (rows, acts_BD)."""
        for start in range(0, len(self), batch_size):
            rows = slice(start, min(start + batch_size, len(self)))
            yield rows, self.acts(np.arange(rows.start, rows.stop))

    def shuffled(self, batch_size: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Yield the rows of each full batch of an epoch, in an order that seed and epoch alone decide.

        The last rows that fill no batch are left out of this epoch; another epoch has others.
        """
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        for start in range(0, len(self) - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
