"""The folder of an unfinished cache: shards and their seals, and how it becomes a finished one.

A shard counts once its seal, which holds its checksum, lies beside it. Several processes may add shards to one folder;
the first of them starts and finishes it.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Features
from filelock import FileLock, Timeout

from utils import distributed
from utils.activation_store import TokenRows, write_shard, write_split_metadata
from utils.atomic import differences, fsync_path, lock_file, read_json_object, sha256_file, sha256_json, write_json
from utils.cache_plan import Shard
from utils.errors import UserError

MANIFEST = "manifest.json"
_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True)
class Building:
    """An unfinished cache.

    Attributes:
        final: the name it will have.
        features: the types of its columns.
        settings: what two runs must share to be the same cache.
    """

    final: Path
    features: Features
    settings: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where it lies until then."""
        return self.final.with_name(f".building-{self.final.name}")

    def _path(self, shard: Shard) -> Path:
        return self.folder / shard.name

    def _seal(self, shard: Shard) -> Path:
        return self.folder / "seals" / f"{shard.split}-{shard.file}.json"

    @property
    def _settings_file(self) -> Path:
        return self.folder / "settings.json"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Keep other runs out; start the folder, or go on with one of the same settings.

        Raises:
            UserError: another run is writing it, or it was begun with other settings.
        """
        if distributed.rank() > 0:
            self._wait_until(self._settings_file.exists)
            self._check_settings()
            yield
            return
        try:
            with FileLock(lock_file(self.folder), timeout=0):
                self._begin()
                try:
                    yield
                finally:
                    if not any(self.folder.glob("seals/*")):  # it failed before its first shard
                        self.discard()
        except Timeout:
            raise UserError(f"{self.folder}: another run is writing this cache; wait for it to end") from None

    def _begin(self) -> None:
        self._check_settings()
        if not self._settings_file.exists():
            self.discard()  # shards of unknown settings
            write_json(self._settings_file, self.settings)
        if distributed.world_size() == 1:
            for leftover in self.folder.rglob(".tmp-*"):  # of a killed process
                leftover.unlink()

    def discard(self) -> None:
        """Remove the folder; renamed first, so that one half removed is never taken for an unfinished cache."""
        if self.folder.exists():
            trash = self.folder.with_name(f".trash-{uuid.uuid4().hex}")
            self.folder.rename(trash)
            shutil.rmtree(trash)

    def _check_settings(self) -> None:
        if self._settings_file.exists():
            check_same(self.folder, read_json_object(self._settings_file), self.settings)

    def holds(self, shard: Shard) -> bool:
        """Tell whether a shard is there, whole."""
        seal, path = self._seal(shard), self._path(shard)
        return seal.exists() and path.exists() and sha256_file(path) == read_json_object(seal, ("sha256",))["sha256"]

    def add(self, shard: Shard, rows: TokenRows, counts: dict[str, Any]) -> None:
        """Write a shard, then its seal, with what is to be counted of it."""
        write_shard(self._path(shard), rows, self.features)
        write_json(self._seal(shard), {"rows": len(rows), "sha256": sha256_file(self._path(shard)), "counts": counts})

    def finish(self, shards: list[Shard], others: list[Shard], described: dict[str, Any]) -> None:
        """Wait for the shards of the other processes, write the manifest and give the folder its final name.

        Args:
            shards: all of them.
            others: those that other processes were to make.
            described: what the manifest holds beside settings, counts and checksums.
        """
        if distributed.rank() > 0:
            self._wait_until(lambda: False)
            return
        while others := [shard for shard in others if not self.holds(shard)]:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        splits = {}
        for split in dict.fromkeys(shard.split for shard in shards):
            own = [shard for shard in shards if shard.split == split]
            seals = [read_json_object(self._seal(shard), ("rows", "sha256", "counts")) for shard in own]
            splits[split] = _sums([seal.pop("counts") for seal in seals]) | {
                "tokens": sum(seal["rows"] for seal in seals),
                "shards": [{"file": shard.file} | seal for shard, seal in zip(own, seals, strict=True)],
            }
        write_metadata(self.folder, self.features, splits)
        versions = {name: version(name) for name in ("torch", "transformers", "datasets", "pyarrow")}
        manifest = self.settings | {"splits": splits, "versions": versions} | described
        write_json(self.folder / MANIFEST, manifest)
        fsync_path(self.folder)
        self.folder.rename(self.final)
        fsync_path(self.final.parent)
        tidy(self.final)

    def _wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait, as a further process, for what the first one does; a finished cache ends every wait."""
        while not (reached() or self.final.exists()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def tidy(folder: Path) -> None:
    """Remove what a finished cache no longer needs; a run may have been killed before it did so."""
    try:
        with FileLock(lock_file(folder), timeout=0):
            shutil.rmtree(folder / "seals", ignore_errors=True)
            (folder / "settings.json").unlink(missing_ok=True)
            for leftover in folder.rglob(".tmp-*"):
                leftover.unlink(missing_ok=True)
    except Timeout:
        pass  # another process is repairing it


def write_metadata(folder: Path, features: Features, splits: dict[str, Any]) -> None:
    """Write the files that make a folder of shards a `datasets.DatasetDict`; the manifest's `splits` decide them."""
    for split, entry in splits.items():
        files = [shard["file"] for shard in entry["shards"]]
        write_split_metadata(folder / split, features, files, sha256_json(entry))
    write_json(folder / "dataset_dict.json", {"splits": list(splits)})


def check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise UserError, with the differences named, unless a folder's settings are the wanted ones."""
    if differs := differences({key: value for key, value in found.items() if key in wanted}, wanted):
        raise UserError(f"{folder} holds a cache of other settings ({differs}); remove it or choose another --out")


def _sums(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up dictionaries of numbers, and of such dictionaries, key by key."""
    return {
        key: _sums([own[key] for own in counts]) if isinstance(value, dict) else sum(own[key] for own in counts)
        for key, value in counts[0].items()
    }
