"""What a cache will cost, said before the work begins: rows, bytes on disk, memory and time."""

import logging
import resource
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Features

from utils import distributed
from utils.cache_plan import CachePlan, Shard
from utils.errors import UserError
from utils.extraction import Extractor

logger = logging.getLogger(__name__)

_SHARDS_IN_MEMORY = 2  # one is computed while the one before is written
_BYTES_BESIDE_SHARD = 40_960  # a seal and the blocks of a file system that a file does not fill
_TOKENS_WORTH_TIMING = 40_000


def row_bytes(features: Features) -> int:
    """Return the bytes of one row on disk."""
    acts, label = features["acts"], features["label"]
    return int(acts.length * np.dtype(acts.feature.dtype).itemsize + label.length + 3 * 4)


def check_disk(folder: Path, missing: list[Shard], features: Features) -> int:
    """Return the bytes that the missing shards will take.

    Raises:
        UserError: the disk under `folder` lacks space; the message says how much.
    """
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(shard.n_rows * row_bytes(features) + _BYTES_BESIDE_SHARD for shard in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: the disk lacks {readable_bytes(needed - free)} for this cache of "
            f"{readable_bytes(needed)}; choose another --out or fewer --max-texts"
        )
    return needed


def announce(plan: CachePlan, missing: list[Shard], needed: int, folder: Path, features: Features) -> None:
    """Log the rows and bytes that are still to come, before the model is loaded."""
    rows = sum(shard.n_rows for shard in missing)
    logger.info(
        "%s tokens in %s of %s shards are to be cached: %s on disk (%s free), %s of memory beside the model",
        f"{rows:,}",
        len(missing),
        len(plan.shards),
        readable_bytes(needed),
        readable_bytes(shutil.disk_usage(folder).free),
        readable_bytes(_SHARDS_IN_MEMORY * max(shard.n_rows for shard in missing) * row_bytes(features)),
    )


def announce_time(plan: CachePlan, missing: list[Shard], extractor: Extractor) -> None:
    """Time two batches and log how long this process will take and how much memory it holds by now."""
    n_tokens = sum(shard.n_tokens for shard in missing)
    if n_tokens < _TOKENS_WORTH_TIMING:
        return
    seconds = n_tokens * extractor.seconds_per_token(plan.tokenise(missing[0]))
    memory = f"{readable_bytes(_peak_memory())} of memory so far"
    if torch.cuda.is_available():
        memory += f", {readable_bytes(torch.cuda.max_memory_allocated())} on the GPU"
    processes = f" for each of {distributed.world_size()} processes" if distributed.world_size() > 1 else ""
    logger.info("about %s%s; %s", readable_seconds(seconds), processes, memory)


def _peak_memory() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def readable_bytes(n_bytes: float) -> str:
    """Return such as `1.5 GB` (10^9 bytes)."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes / 1e3:.1f} kB"


def readable_seconds(seconds: float) -> str:
    """Return such as `45 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
