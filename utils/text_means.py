"""Means of normalised activations over texts, for concepts that whole texts have."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.activation_cache import ActivationSplit
from utils.sae import SAE

# A text's log-odds are so many times its tokens' mean ones: what tokens tell adds up. Theirs are then so small that
# sigmoid is nearly linear, and the mean latent of a text tells as much as its mean pre-activation.
EVIDENCE = 3.0
_TOKENS = 16_384


@dataclass(frozen=True)
class TextMeans:
    """One row per text. As pre-activations are linear, their mean over a text is that of its mean.

    Attributes:
        means_TD: mean normalised activations.
        labels_TC: 1 where any token has the label.
        text_B: for each token of the split, its row.
    """

    means_TD: Tensor
    labels_TC: Tensor
    text_B: NDArray[np.int64]

    @classmethod
    @torch.no_grad()
    def of(cls, sae: SAE, split: ActivationSplit) -> "TextMeans":
        """Go through a split once; memory is that of the means."""
        device = sae.pre_bias.device
        ids, text_B = np.unique(split.text_id_B, return_inverse=True)
        means_TD = torch.zeros(len(ids), split.d_model, device=device)
        labels_TC = torch.zeros(len(ids), split.n_concepts, dtype=torch.int8)
        for rows, acts_BD in split.batches(_TOKENS):
            z_BD = sae.normalise(torch.from_numpy(acts_BD).to(device))[0]
            means_TD.index_add_(0, torch.from_numpy(text_B[rows]).to(device), z_BD)
        index_BC = torch.from_numpy(text_B)[:, None].expand(-1, split.n_concepts)
        labels_TC.scatter_reduce_(0, index_BC, torch.from_numpy(split.label_BC), "amax")
        counts_T = torch.from_numpy(np.bincount(text_B)).to(means_TD)
        return cls(means_TD / counts_T[:, None], labels_TC.to(device), text_B)

    def at(self, rows_B: NDArray[np.int64]) -> Tensor:
        """Return the mean of each token's text, [B, D]."""
        return self.means_TD[torch.from_numpy(self.text_B[rows_B]).to(self.means_TD.device)]
