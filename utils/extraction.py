"""The forward pass of caching: a model cut off behind the hook point, and the rows of some texts."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from utils.activation_store import TokenRows
from utils.cache_plan import CachePlan, Shard, length_sorted_batches
from utils.errors import UserError
from utils.hooks import activations_at, site_module
from utils.models import ModelSource, default_device, load_model
from utils.tokens import TokenisedText

CPU_BATCH_TOKENS = 1_024
GPU_BATCH_TOKENS = 16_384


@dataclass(frozen=True)
class Extractor:
    """A model, cut off behind the hook point, and the size of its batches in padded tokens."""

    model: Any
    module: torch.nn.Module
    batch_tokens: int

    @classmethod
    def load(
        cls,
        source: ModelSource,
        block: int,
        site: str,
        *,
        batch_tokens: int | None = None,
        load_dtype: str | None = None,
        device_map: str | None = None,
    ) -> "Extractor":
        """Load the blocks up to the hook point onto the GPU, or GPUs, where there is one."""
        device = default_device()
        model = load_model(source, n_blocks=block + 1, device=device, load_dtype=load_dtype, device_map=device_map)
        default = GPU_BATCH_TOKENS if device.type == "cuda" else CPU_BATCH_TOKENS
        return cls(model, site_module(model, block, site), batch_tokens or default)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return self.model.get_input_embeddings().weight.device

    @torch.inference_mode()
    def activations(self, texts: list[TokenisedText], dtype: str, bar: tqdm | None = None) -> Tensor:
        """Return acts_BD of every token that becomes a row, in the order of the texts, on the model's last device.

        They are computed in batches of similar length, each written to its place without a copy to the CPU between.
        """
        starts = np.cumsum([0] + [text.n_rows for text in texts])
        acts_BD = torch.empty(0)
        for batch in length_sorted_batches(texts, self.batch_tokens):
            kept_BD = self.forward([texts[i] for i in batch])
            if not len(acts_BD):
                acts_BD = kept_BD.new_empty((int(starts[-1]), kept_BD.shape[1]), dtype=getattr(torch, dtype))
            rows_B = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in batch])
            acts_BD[torch.from_numpy(rows_B).to(acts_BD.device)] = kept_BD.to(acts_BD.dtype)
            if bar is not None:
                bar.update(len(kept_BD))
        return acts_BD

    @torch.inference_mode()
    def forward(self, texts: list[TokenisedText]) -> Tensor:
        """Run one right-padded batch; return acts_BD of the tokens that become rows, text after text."""
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
        return acts_BTD[keep_BT.to(acts_BTD.device)]

    def seconds_per_token(self, texts: list[TokenisedText]) -> float:
        """Time the forward pass on some of the texts; returns seconds per token (padding not counted)."""
        batches = list(length_sorted_batches(texts, self.batch_tokens))
        self.forward([texts[i] for i in batches[0]])  # warms up, and takes the memory of the longest texts
        typical = [texts[i] for i in batches[len(batches) // 2]]
        self._wait()
        start = time.perf_counter()
        self.forward(typical)
        self._wait()
        return (time.perf_counter() - start) / sum(len(text.input_ids_T) for text in typical)

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def compute(
    plan: CachePlan, shards: list[Shard], extractor: Extractor, dtype: str
) -> Iterator[tuple[Shard, list[TokenisedText], Tensor]]:
    """Yield each shard, its texts and their acts_BD; the texts of the next are tokenised meanwhile."""
    total = sum(shard.n_rows for shard in shards)
    with ThreadPoolExecutor(1) as ahead, tqdm(total=total, unit="tok", unit_scale=True, desc="activations") as bar:
        tokenised = ahead.submit(plan.tokenise, shards[0])
        for number, shard in enumerate(shards):
            texts = tokenised.result()
            if number + 1 < len(shards):
                tokenised = ahead.submit(plan.tokenise, shards[number + 1])
            yield shard, texts, extractor.activations(texts, dtype, bar)


def token_rows(texts: list[TokenisedText], acts_BD: Tensor) -> TokenRows:
    """Put activations and the columns of their texts side by side, on the CPU.

    Raises:
        UserError: a value that is infinite or no number, so one that does not fit the type it is stored in.
    """
    text_id_B = np.repeat(np.array([text.text_id for text in texts], np.int32), [text.n_rows for text in texts])
    finite_B = torch.isfinite(acts_BD).all(dim=1)
    if not finite_B.all():
        text_id = int(text_id_B[int(finite_B.int().argmin())])
        dtype = str(acts_BD.dtype).removeprefix("torch.")
        advice = "use --dtype float32" if dtype == "float16" else "the model itself gives inf or NaN"
        raise UserError(f"an activation of text {text_id} does not fit {dtype}; {advice}")
    return TokenRows(
        acts=_to_cpu(acts_BD),
        label=np.concatenate([text.labels_TC[text.keep_T] for text in texts]),
        input_ids=np.concatenate([text.input_ids_T[text.keep_T] for text in texts]),
        text_id=text_id_B,
        position=np.concatenate([np.flatnonzero(text.keep_T).astype(np.int32) for text in texts]),
    )


def _to_cpu(acts_BD: Tensor) -> NDArray:
    """Copy to pinned memory on a stream of its own, so that a GPU computes on while it copies."""
    if acts_BD.device.type != "cuda":
        return acts_BD.numpy()
    pinned_BD = torch.empty(acts_BD.shape, dtype=acts_BD.dtype, pin_memory=True)
    stream = torch.cuda.Stream(acts_BD.device)
    with torch.cuda.stream(stream):
        pinned_BD.copy_(acts_BD, non_blocking=True)
    stream.synchronize()
    return pinned_BD.numpy()
