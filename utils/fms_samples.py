"""The samples that FMS compares: means over texts for sentence-level concepts, single tokens for token-level ones."""

import numpy as np
import torch
from numpy.typing import NDArray

from utils.activation_cache import ActivationSplit
from utils.sae import SAE

_TOKENS_AT_ONCE = 4_096


@torch.inference_mode()
def encode_rows(sae: SAE, split: ActivationSplit, rows_B: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return latents_BN of single tokens."""
    device = sae.pre_bias.device
    latents_BN = np.empty((len(rows_B), sae.config.n_latents), np.float32)
    for start in range(0, len(rows_B), _TOKENS_AT_ONCE):
        chunk = slice(start, start + _TOKENS_AT_ONCE)
        acts_BD = torch.from_numpy(split.acts(rows_B[chunk])).to(device)
        latents_BN[chunk] = sae.encode(acts_BD).cpu().numpy()
    return latents_BN


@torch.inference_mode()
def text_means(sae: SAE, split: ActivationSplit) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return the mean latents of each text over its real tokens, and its labels (1 where any token has the concept).

    Returns:
        latents_BN and labels_BC for B texts, those without a token left out, in the order of the split.
    """
    device = sae.pre_bias.device
    text_ids, index_of_row, n_tokens = np.unique(split.text_id_B, return_inverse=True, return_counts=True)
    sums_BN = torch.zeros(len(text_ids), sae.config.n_latents, device=device)
    for rows, acts_BD in split.batches(_TOKENS_AT_ONCE):
        index_B = torch.from_numpy(index_of_row[rows]).to(device)
        sums_BN.index_add_(0, index_B, sae.encode(torch.from_numpy(acts_BD).to(device)))
    labels_BC = np.zeros((len(text_ids), split.label_BC.shape[1]), np.int8)
    np.maximum.at(labels_BC, index_of_row, split.label_BC)
    means_BN = sums_BN.cpu().numpy() / n_tokens[:, None].astype(np.float32)
    return means_BN.astype(np.float32, copy=False), labels_BC


def balanced_rows(labels_B: NDArray[np.int8], random: np.random.Generator) -> NDArray[np.int64]:
    """Return the rows of all positive tokens and of as many others, chosen at random, in ascending order."""
    positive, other = np.flatnonzero(labels_B), np.flatnonzero(labels_B == 0)
    chosen = random.choice(other, min(len(positive), len(other)), replace=False)
    return np.sort(np.concatenate([positive, chosen]))
