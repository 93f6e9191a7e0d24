"""From labelled text to labelled activations: a forward pass that stops at the hook, and shards on disk.

The work is cut into shards of consecutive texts before it starts. A shard is made in memory, its texts sorted by length
into batches of a token budget, and written whole; so an interrupted run continues with the first shard that is missing.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Features
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from tqdm import tqdm

from utils.activation_store import FORMAT, TokenRows, cache_name, row_features, write_shard, write_split_metadata
from utils.atomic import differences, fsync_path, lock_file, read_json_object, sha256_file, sha256_json, write_json
from utils.cache_plan import Shard, length_sorted_batches, plan_shards
from utils.errors import UserError
from utils.hooks import activations_at, check_block, check_site, site_module
from utils.labelled_text import LabelledText
from utils.models import ModelSource, compute_dtype, default_device, load_config, load_model, load_tokenizer
from utils.tokens import TokenisedText, special_token_ids

logger = logging.getLogger(__name__)

SHARD_BYTES = 256 << 20
MAX_LENGTH = 2048
_NOT_SETTINGS = ("splits", "versions")


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

    Texts longer than the model's context, or than 2,048 tokens, are cut off there and counted in the manifest.

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
        "compute_dtype": str(compute_dtype(config, default_device())).removeprefix("torch."),
    }
    folder = out / cache_name(source.name, data.name, block, site)
    if folder.exists():
        found = read_json_object(folder / "manifest.json")
        _check_same(folder, {key: value for key, value in found.items() if key not in _NOT_SETTINGS}, settings)
        logger.info("%s is there already", folder)
        return folder
    shards = plan_shards(
        data,
        tokenizer,
        max_texts=max_texts,
        seed=seed,
        max_length=settings["max_length"],
        rows_per_shard=max(1, shard_bytes // (config.hidden_size * np.dtype(dtype).itemsize)),
    )
    building = _Building(out / f".building-{folder.name}", row_features(config.hidden_size, len(data.concepts), dtype))
    extractor = Extractor.load(source, block, site, batch_tokens)
    with building.locked():
        building.open(settings, shards)
        missing = [shard for shard in shards if not building.holds(shard)]
        with tqdm(total=sum(shard.n_rows for shard in missing), unit="tok", unit_scale=True, desc="activations") as bar:
            for shard in missing:
                try:
                    rows = extractor.rows(shard.texts, dtype, bar)
                except UserError:  # a value that does not fit: these settings can never be finished
                    shutil.rmtree(building.folder)
                    raise
                building.add(shard, rows)
        building.finish(shards, settings, folder)
    return folder


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    if differs := differences(found, wanted):
        raise UserError(f"{folder} holds a cache of other settings ({differs}); remove it or choose another --out")


@dataclass(frozen=True)
class Extractor:
    """A model, cut off behind the hook point, and the size of its batches."""

    model: Any
    module: torch.nn.Module
    device: torch.device
    batch_tokens: int

    @classmethod
    def load(cls, source: ModelSource, block: int, site: str, batch_tokens: int | None) -> "Extractor":
        """Load the blocks up to the hook point onto the GPU where there is one."""
        device = default_device()
        model = load_model(source, n_blocks=block + 1, device=device)
        default = 32_768 if device.type == "cuda" else 4_096
        return cls(model, site_module(model, block, site), device, batch_tokens or default)

    def rows(self, texts: list[TokenisedText], dtype: str, bar: tqdm) -> TokenRows:
        """Return the rows of some texts, in their order, computed in batches of similar length."""
        starts = np.cumsum([0] + [text.n_rows for text in texts])
        acts_BD = np.empty((starts[-1], self.model.config.hidden_size), dtype)
        for batch in length_sorted_batches(texts, self.batch_tokens):
            kept_BD = self._kept_activations([texts[i] for i in batch], dtype)
            end = 0
            for i in batch:
                start, end = end, end + texts[i].n_rows
                acts_BD[starts[i] : starts[i + 1]] = kept_BD[start:end]
            bar.update(len(kept_BD))
        return TokenRows(
            acts=acts_BD,
            label=np.concatenate([text.labels_TC[text.keep_T] for text in texts]),
            input_ids=np.concatenate([text.input_ids_T[text.keep_T] for text in texts]),
            text_id=np.repeat(np.array([text.text_id for text in texts], np.int32), [text.n_rows for text in texts]),
            position=np.concatenate([np.flatnonzero(text.keep_T).astype(np.int32) for text in texts]),
        )

    @torch.inference_mode()
    def _kept_activations(self, texts: list[TokenisedText], dtype: str) -> NDArray:
        """Run one right-padded batch; return the activations of the tokens that become rows, text after text."""
        longest = max(len(text.input_ids_T) for text in texts)
        input_ids_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        attention_mask_BT = torch.zeros(len(texts), longest, dtype=torch.long)
        keep_BT = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, text in enumerate(texts):
            length = len(text.input_ids_T)
            input_ids_BT[row, :length] = torch.from_numpy(text.input_ids_T)
            attention_mask_BT[row, :length] = 1
            keep_BT[row, :length] = torch.from_numpy(text.keep_T)
        on_device = (tensor.to(self.device) for tensor in (input_ids_BT, attention_mask_BT))
        acts_BTD = activations_at(self.module, self.model, *on_device)
        kept_BD = acts_BTD[keep_BT.to(self.device)].to(getattr(torch, dtype))
        if not torch.isfinite(kept_BD).all():
            ids = sorted(text.text_id for text in texts)
            advice = "use --dtype float32" if dtype == "float16" else "the model itself gives inf or NaN"
            raise UserError(f"an activation in the texts {ids[0]} to {ids[-1]} does not fit {dtype}; {advice}")
        return kept_BD.cpu().numpy()


@dataclass(frozen=True)
class _Building:
    """The folder of an unfinished cache. A shard counts once its seal, which holds its checksum, lies beside it."""

    folder: Path
    features: Features

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out."""
        try:
            with FileLock(lock_file(self.folder), timeout=0):
                yield
        except Timeout:
            raise UserError(f"{self.folder}: another process is writing this cache; wait for it to end") from None

    def open(self, settings: dict[str, Any], shards: list[Shard]) -> None:
        """Start the folder, if the disk can hold it, or go on with one of the same settings."""
        path = self.folder / "settings.json"
        if path.exists():
            _check_same(self.folder, read_json_object(path), settings)
            logger.info("going on with the unfinished %s", self.folder)
            for leftover in self.folder.rglob(".tmp-*"):  # of a killed process
                leftover.unlink()
        self._check_disk([shard for shard in shards if not self.holds(shard)])
        if not path.exists():
            write_json(path, settings)

    def _path(self, shard: Shard) -> Path:
        return self.folder / shard.split / shard.file

    def _seal(self, shard: Shard) -> Path:
        return self.folder / "seals" / f"{shard.split}-{shard.file}.json"

    def holds(self, shard: Shard) -> bool:
        """Tell whether a shard is there, whole."""
        seal, path = self._seal(shard), self._path(shard)
        return seal.exists() and path.exists() and sha256_file(path) == read_json_object(seal, ("sha256",))["sha256"]

    def _check_disk(self, missing: list[Shard]) -> None:
        """Say how much will be written; refuse where it does not fit."""
        acts, label = self.features["acts"], self.features["label"]
        row_bytes = acts.length * np.dtype(acts.feature.dtype).itemsize + label.length + 3 * 4
        n_rows = sum(shard.n_rows for shard in missing)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        needed, free = n_rows * row_bytes, shutil.disk_usage(self.folder.parent).free
        logger.info("%s tokens, %.2f GB on disk (%.1f GB free)", f"{n_rows:,}", needed / 1e9, free / 1e9)
        if needed * 1.01 > free:
            lacking = (needed * 1.01 - free) / 1e9
            raise UserError(
                f"{self.folder.parent}: the disk lacks {lacking:.2f} GB for this cache; choose another --out"
            )

    def add(self, shard: Shard, rows: TokenRows) -> None:
        """Write a shard, then its seal."""
        write_shard(self._path(shard), rows, self.features)
        write_json(self._seal(shard), {"rows": len(rows), "sha256": sha256_file(self._path(shard))})

    def finish(self, shards: list[Shard], settings: dict[str, Any], folder: Path) -> None:
        """Write the metadata and give the folder its final name."""
        splits: dict[str, Any] = {}
        for split in dict.fromkeys(shard.split for shard in shards):
            own = [shard for shard in shards if shard.split == split]
            sealed = [{"file": shard.file} | read_json_object(self._seal(shard)) for shard in own]
            splits[split] = _counts(own, settings["concepts"]) | {"shards": sealed}
            names = [shard.file for shard in own]
            write_split_metadata(self.folder / split, self.features, names, sha256_json(splits[split]))
        write_json(self.folder / "dataset_dict.json", {"splits": list(splits)})
        versions = {name: version(name) for name in ("torch", "transformers", "datasets", "pyarrow")}
        write_json(self.folder / "manifest.json", settings | {"splits": splits, "versions": versions})
        shutil.rmtree(self.folder / "seals")
        (self.folder / "settings.json").unlink()
        fsync_path(self.folder)
        self.folder.rename(folder)
        fsync_path(folder.parent)


def _counts(shards: list[Shard], concepts: list[str]) -> dict[str, Any]:
    texts = [text for shard in shards for text in shard.texts]
    positives_C = np.zeros(len(concepts), np.int64)
    for text in texts:
        positives_C += text.labels_TC[text.keep_T].sum(axis=0, dtype=np.int64)
    return {
        "texts": len(texts),
        "tokens": sum(shard.n_rows for shard in shards),
        "positive_tokens": dict(zip(concepts, positives_C.tolist(), strict=True)),
        "texts_truncated": sum(text.truncated for text in texts),
        "texts_without_tokens": sum(text.n_rows == 0 for text in texts),
    }
