"""From labelled text to labelled activations: batches, a forward pass that stops at the hook, and shards.

The work is cut into shards of consecutive texts before it starts. A shard is made in memory, its texts sorted by length
into batches of a token budget, and written whole; so an interrupted run continues with the first shard that is missing.
"""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Features
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from utils.activation_store import (
    FORMAT,
    TokenRows,
    cache_name,
    row_features,
    shard_name,
    write_shard,
    write_split_metadata,
)
from utils.atomic import differences, fsync_path, read_json, sha256_file, sha256_json, write_json
from utils.errors import UserError
from utils.hooks import activations_at, check_block, check_site, site_module
from utils.labelled_text import LabelledText
from utils.models import ModelSource, default_device, load_config, load_model, load_tokenizer
from utils.tokens import TokenisedText, special_token_ids, tokenise

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20
MAX_LENGTH = 2048
_NOT_SETTINGS = ("splits", "versions")


@dataclass(frozen=True)
class Shard:
    """Consecutive texts of a split that go into one file."""

    split: str
    file: str
    texts: list[TokenisedText]

    @property
    def n_rows(self) -> int:
        """The number of tokens that become rows."""
        return int(sum(text.keep_T.sum() for text in self.texts))


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
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Cache the activations of every token of a data set; continue an interrupted run; do nothing where all is there.

    Args:
        data: the texts; with `max_texts`, a seeded random choice of that many from each split.
        source: the model, see `utils.models.find_model`.
        block: the decoder block, counted from 0.
        site: `block`, `mlp` or `attention`.
        out: the cache becomes the folder `<model>-<DATASET>-B<block>-<site>` in it.
        dtype: of the stored activations, `float16` or `float32`.
        max_texts: at most so many texts of each split.
        batch_tokens: padded tokens of a batch; by default 4,096 on a CPU, 32,768 on a GPU.
        seed: of the choice of texts.
        shard_bytes: activations of one file, in bytes.

    Returns:
        The cache's folder.

    Raises:
        UserError: bad arguments, a folder with a cache of other settings, too small a disk, values beyond `dtype`.
    """
    check_site(site)
    config = load_config(source)
    check_block(block, config.num_hidden_layers)
    tokenizer = load_tokenizer(source)
    max_length = min(MAX_LENGTH, config.max_position_embeddings)
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
        "max_length": max_length,
        "shard_bytes": shard_bytes,
        "special_token_ids": special_token_ids(tokenizer),
    }
    folder = out / cache_name(source.name, data.name, block, site)
    if folder.exists():
        _check_same(folder, read_json(folder / "manifest.json"), settings)
        logger.info("%s is there already", folder)
        return folder

    rows_per_shard = max(1, shard_bytes // (config.hidden_size * np.dtype(dtype).itemsize))
    shards = []
    for split, texts in data.splits.items():
        ids = _choose(len(texts), max_texts, seed)
        tokens = tokenise([texts[i] for i in ids], ids, tokenizer, data.concepts, max_length)
        shards += _plan(split, tokens, rows_per_shard)
    building = out / f".building-{folder.name}"
    _prepare(building, settings, folder)
    features = row_features(config.hidden_size, len(data.concepts), dtype)
    _make_shards(shards, building, features, source, block, site, dtype, batch_tokens)
    _finish(shards, building, folder, features, settings, data.concepts)
    return folder


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = {key: value for key, value in found.items() if key not in _NOT_SETTINGS}
    if differs := differences(found, wanted):
        raise UserError(f"{folder} holds a cache of other settings ({differs}); remove it or choose another --out")


def _choose(n_texts: int, max_texts: int | None, seed: int) -> list[int]:
    if max_texts is None or max_texts >= n_texts:
        return list(range(n_texts))
    return sorted(np.random.default_rng(seed).choice(n_texts, max_texts, replace=False).tolist())


def _plan(split: str, tokens: list[TokenisedText], rows_per_shard: int) -> list[Shard]:
    """Cut a split into shards of consecutive texts, each of at most `rows_per_shard` rows unless a text alone has more."""
    groups: list[list[TokenisedText]] = [[]]
    rows = 0
    for text in tokens:
        n_rows = int(text.keep_T.sum())
        if groups[-1] and rows + n_rows > rows_per_shard:
            groups.append([])
            rows = 0
        groups[-1].append(text)
        rows += n_rows
    if not any(text.keep_T.any() for text in tokens):
        raise UserError(f"split {split!r} holds no token beside special ones; check the texts")
    return [Shard(split, shard_name(number, len(groups)), group) for number, group in enumerate(groups)]


def _prepare(building: Path, settings: dict[str, Any], folder: Path) -> None:
    building.mkdir(parents=True, exist_ok=True)
    if (building / "settings.json").exists():
        found = read_json(building / "settings.json")
        if differs := differences(found, settings):
            raise UserError(
                f"{building} holds an unfinished cache of other settings ({differs}); remove it or choose another --out"
            )
        logger.info("going on with the unfinished %s", folder)
    else:
        write_json(building / "settings.json", settings)


def _make_shards(
    shards: list[Shard],
    building: Path,
    features: Features,
    source: ModelSource,
    block: int,
    site: str,
    dtype: str,
    batch_tokens: int | None,
) -> None:
    missing = [shard for shard in shards if not _is_whole(building, shard)]
    if not missing:
        return
    _check_disk(building, missing, features, dtype)
    device = default_device()
    budget = batch_tokens or (32_768 if device.type == "cuda" else 4_096)
    model = load_model(source, n_blocks=block + 1, device=device)
    module = site_module(model, block, site)
    d_model = features["acts"].length
    with tqdm(total=sum(shard.n_rows for shard in missing), unit="tok", unit_scale=True, desc="activations") as bar:
        for shard in missing:
            acts_BD = np.empty((shard.n_rows, d_model), dtype)
            starts = np.cumsum([0] + [int(text.keep_T.sum()) for text in shard.texts])
            for batch in _batches(shard.texts, budget):
                _fill(acts_BD, starts, [(i, shard.texts[i]) for i in batch], model, module, device)
                bar.update(sum(int(shard.texts[i].keep_T.sum()) for i in batch))
            (building / shard.split).mkdir(exist_ok=True)
            path = building / shard.split / shard.file
            write_shard(path, _rows(acts_BD, shard.texts), features)
            write_json(_seal(building, shard), {"rows": shard.n_rows, "sha256": sha256_file(path)})


def _batches(texts: list[TokenisedText], budget: int) -> Iterator[list[int]]:
    """Yield indices of texts of similar length, longest first, whose padded size stays within the budget."""
    order = sorted((i for i, text in enumerate(texts) if text.keep_T.any()), key=lambda i: -len(texts[i].input_ids_T))
    start = 0
    while start < len(order):
        n_texts = max(1, budget // len(texts[order[start]].input_ids_T))
        yield order[start : start + n_texts]
        start += n_texts


@torch.inference_mode()
def _fill(
    acts_BD: NDArray,
    starts: NDArray[np.int64],
    batch: list[tuple[int, TokenisedText]],
    model: nn.Module,
    module: nn.Module,
    device: torch.device,
) -> None:
    """Run one right-padded batch and copy the activations of the kept tokens to their texts' rows."""
    longest = max(len(text.input_ids_T) for _, text in batch)
    input_ids_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    attention_mask_BT = torch.zeros(len(batch), longest, dtype=torch.long)
    keep_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, (_, text) in enumerate(batch):
        length = len(text.input_ids_T)
        input_ids_BT[row, :length] = torch.from_numpy(text.input_ids_T)
        attention_mask_BT[row, :length] = 1
        keep_BT[row, :length] = torch.from_numpy(text.keep_T)
    acts_BTD = activations_at(module, model, input_ids_BT.to(device), attention_mask_BT.to(device))
    kept = acts_BTD[keep_BT.to(device)].to(getattr(torch, acts_BD.dtype.name))
    if not torch.isfinite(kept).all():
        text_ids = [text.text_id for _, text in batch]
        advice = "use --dtype float32" if acts_BD.dtype == np.float16 else "the model itself gives inf or NaN"
        raise UserError(f"an activation of the texts {min(text_ids)}..{max(text_ids)} does not fit {acts_BD.dtype}; {advice}")
    kept_on_cpu = kept.cpu().numpy()
    end = 0
    for i, text in batch:
        start, end = end, end + int(text.keep_T.sum())
        acts_BD[starts[i] : starts[i + 1]] = kept_on_cpu[start:end]


def _rows(acts_BD: NDArray, texts: list[TokenisedText]) -> TokenRows:
    return TokenRows(
        acts=acts_BD,
        label=np.concatenate([text.labels_TC[text.keep_T] for text in texts]),
        input_ids=np.concatenate([text.input_ids_T[text.keep_T] for text in texts]),
        text_id=np.concatenate([np.full(text.keep_T.sum(), text.text_id, np.int32) for text in texts]),
        position=np.concatenate([np.flatnonzero(text.keep_T).astype(np.int32) for text in texts]),
    )


def _seal(building: Path, shard: Shard) -> Path:
    """Return the file that vouches for a shard: it is written after it and holds its checksum."""
    return building / "seals" / f"{shard.split}-{shard.file}.json"


def _is_whole(building: Path, shard: Shard) -> bool:
    seal, path = _seal(building, shard), building / shard.split / shard.file
    return seal.exists() and path.exists() and sha256_file(path) == read_json(seal)["sha256"]


def _check_disk(building: Path, missing: list[Shard], features: Features, dtype: str) -> None:
    n_rows = sum(shard.n_rows for shard in missing)
    row_bytes = features["acts"].length * np.dtype(dtype).itemsize + features["label"].length + 3 * 4
    needed, free = n_rows * row_bytes, shutil.disk_usage(building).free
    logger.info("%s tokens, %.2f GB on disk (%.1f GB free)", f"{n_rows:,}", needed / 1e9, free / 1e9)
    if needed * 1.01 > free:
        raise UserError(f"{building.parent}: the disk lacks {(needed * 1.01 - free) / 1e9:.2f} GB for this cache; choose another --out")


def _finish(
    shards: list[Shard], building: Path, folder: Path, features: Features, settings: dict[str, Any], concepts: list[str]
) -> None:
    splits: dict[str, Any] = {}
    for split in dict.fromkeys(shard.split for shard in shards):
        own = [shard for shard in shards if shard.split == split]
        texts = [text for shard in own for text in shard.texts]
        positives_C = sum(text.labels_TC[text.keep_T].sum(axis=0, dtype=np.int64) for text in texts)
        splits[split] = {
            "texts": len(texts),
            "tokens": sum(shard.n_rows for shard in own),
            "positive_tokens": dict(zip(concepts, np.atleast_1d(positives_C).tolist(), strict=True)),
            "texts_truncated": sum(text.truncated for text in texts),
            "texts_without_tokens": sum(not text.keep_T.any() for text in texts),
            "shards": [{"file": shard.file} | read_json(_seal(building, shard)) for shard in own],
        }
        names = [shard.file for shard in own]
        write_split_metadata(building / split, features, names, sha256_json(splits[split]))
    write_json(building / "dataset_dict.json", {"splits": list(splits)})
    versions = {name: version(name) for name in ("torch", "transformers", "datasets", "pyarrow")}
    write_json(building / "manifest.json", settings | {"splits": splits, "versions": versions})
    shutil.rmtree(building / "seals")
    (building / "settings.json").unlink()
    fsync_path(building)
    building.rename(folder)
    fsync_path(folder.parent)
