"""Checking a finished cache against the checksums of its manifest, and making what is damaged anew."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Features
from filelock import FileLock
from tqdm import tqdm

from utils.activation_cache import ActivationCache
from utils.activation_store import SPLIT_FILES, write_shard
from utils.atomic import lock_file, sha256_file, write_json
from utils.cache_building import MANIFEST, write_metadata
from utils.cache_plan import CachePlan
from utils.errors import UserError
from utils.extraction import Extractor, compute, token_rows

logger = logging.getLogger(__name__)


def damaged_files(folder: Path) -> dict[str, str]:
    """Return what is wrong with each damaged file (`<split>/<file>`) of a finished cache.

    Raises:
        UserError: no cache there, or a manifest that cannot be read.
    """
    manifest = ActivationCache(folder).manifest
    entries = _entries(manifest)
    found = {}
    for name, entry in tqdm(entries.items(), unit="shard", desc="checking", delay=5):
        path = folder / name
        if not path.is_file():
            found[name] = "missing"
        elif sha256_file(path) != entry["sha256"]:
            found[name] = "its contents do not match its checksum"
    small = ["dataset_dict.json", *(f"{split}/{file}" for split in manifest["splits"] for file in SPLIT_FILES)]
    return found | {name: "missing" for name in small if not (folder / name).is_file()}


def verify(folder: Path) -> int:
    """Check every shard of a finished cache; return how many there are.

    Raises:
        UserError: a file is missing or damaged (all such are named).
    """
    if damaged := damaged_files(folder):
        named = "; ".join(f"{name}: {reason}" for name, reason in damaged.items())
        raise UserError(f"{folder}: {len(damaged)} damaged ({named}); the same command with --repair mends it")
    return len(_entries(ActivationCache(folder).manifest))


def repair(folder: Path, plan: CachePlan, features: Features, dtype: str, load: Callable[[], Extractor]) -> None:
    """Compute the damaged shards of a finished cache anew, and write its small files anew.

    Other hardware or library versions may round differently; then the manifest takes the new checksums.
    """
    with FileLock(lock_file(folder)):
        _repair(folder, plan, features, dtype, load)


def _repair(folder: Path, plan: CachePlan, features: Features, dtype: str, load: Callable[[], Extractor]) -> None:
    manifest = ActivationCache(folder).manifest
    entries = _entries(manifest)
    damaged = damaged_files(folder)
    shards = [shard for shard in plan.shards if shard.name in damaged]
    if shards:
        for shard, texts, acts_BD in compute(plan, shards, load(), dtype):
            write_shard(folder / shard.name, token_rows(texts, acts_BD), features)
            checksum = sha256_file(folder / shard.name)
            if checksum == entries[shard.name]["sha256"]:
                logger.info("%s: mended", shard.name)
            else:
                logger.warning("%s: mended, but other hardware or versions gave other last digits", shard.name)
                entries[shard.name]["sha256"] = checksum
                write_json(folder / MANIFEST, manifest)
    write_metadata(folder, features, manifest["splits"])


def _entries(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the manifest's own entry of each shard."""
    return {
        f"{split}/{shard['file']}": shard for split, entry in manifest["splits"].items() for shard in entry["shards"]
    }
