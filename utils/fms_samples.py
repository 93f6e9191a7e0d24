"""The samples that FMS compares: means over texts for sentence-level concepts, single tokens for token-level ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from utils.activation_cache import ActivationSplit
from utils.cache_plan import length_sorted_batches
from utils.errors import UserError
from utils.extraction import Extractor
from utils.sae import SAE
from utils.tokens import TokenisedText

_TOKENS = 4_096  # at a time


@torch.inference_mode()
def encode_rows(sae: SAE, split: ActivationSplit, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return latents_BN of single tokens."""
    device = sae.pre_bias.device
    latents_BN = np.empty((len(rows_B), sae.config.n_latents), np.float32)
    for start in range(0, len(rows_B), _TOKENS):
        chunk = slice(start, start + _TOKENS)
        acts_BD = torch.from_numpy(split.acts(rows_B[chunk])).to(device)
        latents_BN[chunk] = sae.encode(acts_BD).cpu().numpy()
    return latents_BN


@dataclass(frozen=True)
class PooledTexts:
    """The mean latents of B texts over their real tokens.

    Attributes:
        text_ids_B: which texts, by their index in the split; those without a token are left out.
        means_BN: the means.
        labels_BC: 1 where any token has the concept.
    """

    text_ids_B: NDArray[np.int64]
    means_BN: NDArray[np.float32]
    labels_BC: NDArray[np.int8]


def pool_cached(sae: SAE, split: ActivationSplit) -> PooledTexts:
    """Pool the latents of cached activations, text by text."""
    device = sae.pre_bias.device
    text_ids_B, index_of_row, n_tokens_B = np.unique(split.text_id_B, return_inverse=True, return_counts=True)
    labels_BC = np.zeros((len(text_ids_B), split.label_BC.shape[1]), np.int8)
    np.maximum.at(labels_BC, index_of_row, split.label_BC)
    batches = ((index_of_row[rows], torch.from_numpy(acts_BD).to(device)) for rows, acts_BD in split.batches(_TOKENS))
    return PooledTexts(text_ids_B.astype(np.int64), _means(sae, batches, n_tokens_B), labels_BC)


def pool_texts(sae: SAE, extractor: Extractor, texts: list[TokenisedText]) -> PooledTexts:
    """Run the language model on texts and pool their latents at once; no activations are stored.

    Raises:
        UserError: no text with a token beside special ones.
    """
    texts = [text for text in texts if text.n_rows > 0]
    if not texts:
        raise UserError("no text holds a token beside special ones")
    n_tokens_B = np.array([text.n_rows for text in texts])
    labels_BC = np.stack([text.labels_TC[text.keep_T].max(axis=0) for text in texts])

    def batches() -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        with tqdm(total=int(n_tokens_B.sum()), unit="tok", unit_scale=True, desc="latents", delay=5) as bar:
            for batch in length_sorted_batches(texts, extractor.batch_tokens):
                acts_BD = extractor.forward([texts[i] for i in batch])
                yield np.repeat(batch, n_tokens_B[batch]), acts_BD.float().to(sae.pre_bias.device)
                bar.update(len(acts_BD))

    text_ids_B = np.array([text.text_id for text in texts])
    return PooledTexts(text_ids_B, _means(sae, batches(), n_tokens_B), labels_BC)


@torch.inference_mode()
def _means(
    sae: SAE, batches: Iterable[tuple[NDArray[np.int64], Tensor]], n_tokens_B: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Add up the latents of batches of tokens by the index of their text; only sums of texts are ever held."""
    device = sae.pre_bias.device
    sums_BN = torch.zeros(len(n_tokens_B), sae.config.n_latents, device=device)
    for index_of_token, acts_BD in batches:
        sums_BN.index_add_(0, torch.from_numpy(index_of_token).to(device), sae.encode(acts_BD))
    sums_BN /= torch.from_numpy(n_tokens_B).to(device)[:, None]
    return sums_BN.cpu().numpy()


def balanced_rows(labels_B: NDArray[np.int8], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of all positive tokens and of as many others, chosen at random, in ascending order."""
    positive, other = np.flatnonzero(labels_B), np.flatnonzero(labels_B == 0)
    chosen = random.choice(other, min(len(positive), len(other)), replace=False)
    return np.sort(np.concatenate([positive, chosen]))
