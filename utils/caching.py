"""From labelled text to labelled activations: a forward pass that stops at the hook, and shards on disk.

The work is cut into shards of consecutive texts before it starts. Each is computed in memory and written whole, so an
interrupted run continues with the first shard that is missing; several processes take turns, shard by shard.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils import distributed
from utils.activation_store import FORMAT, cache_name, row_features
from utils.atomic import read_json_object
from utils.cache_building import MANIFEST, Building, check_same, tidy
from utils.cache_estimate import announce, announce_time, check_disk
from utils.cache_plan import CachePlan, Shard, plan_cache
from utils.cache_repair import repair
from utils.errors import UserError
from utils.extraction import Extractor, compute, token_rows
from utils.hooks import check_block, check_site
from utils.labelled_text import LabelledText
from utils.models import ModelSource, compute_dtype, default_device, load_config, load_tokenizer
from utils.tokens import TokenisedText, special_token_ids

logger = logging.getLogger(__name__)

SHARD_BYTES = 1 << 30
MAX_LENGTH = 2048


def cache_activations(
    data: LabelledText,
    source: ModelSource,
    block: int,
    site: str,
    out: Path,
    *,
    dtype: str = "float16",
    max_texts: int | None = None,
    batch_tokens: int | None = None,
    load_dtype: str | None = None,
    device_map: str | None = None,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    repair_damage: bool = False,
) -> Path:
    """Cache the activations of every token of a data set; continue an interrupted run; do nothing where all is there.

    Texts longer than the model's context, or than 2,048 tokens, are cut off there and counted in the manifest.

    Args:
        data: the texts; with `max_texts`, a seeded random choice of that many from each split.
        source: the model, see `utils.models.find_model`.
        block: the decoder block, counted from 0.
        site: `block`, `mlp` or `attention`.
        out: the cache becomes the folder `<model>-<DATASET>-B<block>-<site>` in it.
        dtype: of the stored activations, `float16` or `float32`.
        max_texts: at most so many texts of each split.
        batch_tokens: padded tokens of a batch; by default 1,024 on a CPU, 16,384 on a GPU.
        load_dtype: what the model computes in, see `utils.models.compute_dtype`.
        device_map: how it is spread over several GPUs, see `utils.models.load_model`.
        seed: of the choice of texts.
        shard_bytes: the most activations of one file, in bytes.
        repair_damage: make the damaged shards of a finished cache anew.

    Returns:
        The cache's folder.

    Raises:
        UserError: bad arguments, a folder with a cache of other settings, too small a disk, values beyond `dtype`.
    """
    check_site(site)
    config = load_config(source)
    check_block(block, config.num_hidden_layers)
    tokenizer = load_tokenizer(source)
    settings = {
        "format": FORMAT,
        "dataset": data.name,
        "dataset_fingerprint": data.fingerprint(),
        "concepts": data.concepts,
        "model": source.name,
        "revision": source.revision,
        "block": block,
        "site": site,
        "dtype": dtype,
        "d_model": config.hidden_size,
        "max_texts": max_texts,
        "seed": seed,
        "max_length": min(MAX_LENGTH, config.max_position_embeddings),
        "shard_bytes": shard_bytes,
        "special_token_ids": special_token_ids(tokenizer),
        "compute_dtype": str(compute_dtype(config, default_device(), load_dtype)).removeprefix("torch."),
    }
    folder = out / cache_name(source.name, data.name, block, site)
    finished = folder.exists()
    if finished:
        check_same(folder, read_json_object(folder / MANIFEST), settings)
        if distributed.rank() == 0:
            tidy(folder)
    if finished and not (repair_damage and distributed.rank() == 0):
        logger.info("%s is there already", folder)
        return folder
    plan = plan_cache(
        data,
        tokenizer,
        max_texts=max_texts,
        seed=seed,
        max_length=settings["max_length"],
        most_rows=max(1, shard_bytes // (config.hidden_size * np.dtype(dtype).itemsize)),
    )
    features = row_features(config.hidden_size, len(data.concepts), dtype)

    def load() -> Extractor:
        return Extractor.load(
            source, block, site, batch_tokens=batch_tokens, load_dtype=load_dtype, device_map=device_map
        )

    if finished:
        repair(folder, plan, features, dtype, load)
    else:
        _build(Building(folder, features, settings), plan, dtype, load)
    return folder


def _build(building: Building, plan: CachePlan, dtype: str, load: Callable[[], Extractor]) -> None:
    """Compute what is missing of this process's share, and finish the cache."""
    with building.opened():
        if building.final.exists():
            return
        missing = [shard for shard in plan.shards if not building.holds(shard)]
        if len(missing) < len(plan.shards):
            logger.info("going on with the unfinished %s", building.folder)
        own = [shard for shard in plan.shards[distributed.rank() :: distributed.world_size()] if shard in missing]
        out = building.final.parent
        needed = check_disk(out, missing, building.features)
        if own:
            announce(plan, missing, needed, out, building.features)
            extractor = load()
            announce_time(plan, own, extractor)
            try:
                _fill(building, plan, own, extractor, dtype)
            except UserError:  # a value that does not fit: these settings can never be finished
                building.discard()
                raise
        others = [shard for shard in missing if shard not in own]
        building.finish(plan.shards, others, {"text_counts": plan.data.manifest()["counts"]})


def _fill(building: Building, plan: CachePlan, shards: list[Shard], extractor: Extractor, dtype: str) -> None:
    """Compute and write shards, one being written while the next is computed."""
    with ThreadPoolExecutor(1) as behind:
        written: Future[None] | None = None
        for shard, texts, acts_BD in compute(plan, shards, extractor, dtype):
            if written is not None:
                written.result()
            written = behind.submit(_add, building, shard, texts, acts_BD)
        if written is not None:
            written.result()


def _add(building: Building, shard: Shard, texts: list[TokenisedText], acts_BD: Tensor) -> None:
    building.add(shard, token_rows(texts, acts_BD), _counts(texts, building.settings["concepts"]))


def _counts(texts: list[TokenisedText], concepts: list[str]) -> dict[str, Any]:
    """Count what the manifest tells of a shard."""
    positives_C = np.zeros(len(concepts), np.int64)
    for text in texts:
        positives_C += text.labels_TC[text.keep_T].sum(axis=0, dtype=np.int64)
    return {
        "texts": len(texts),
        "positive_tokens": dict(zip(concepts, positives_C.tolist(), strict=True)),
        "texts_truncated": sum(text.truncated for text in texts),
        "texts_without_tokens": sum(text.n_rows == 0 for text in texts),
    }
