"""Erasure: an affine map after which no linear classifier tells a concept from the activations (LEACE)."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from utils.activation_cache import ActivationSplit
from utils.errors import UserError
from utils.sae import SAE

TEXTS_PER_PART = 100  # at least; what fewer tell of a concept is mostly chance
_TOKENS = 8_192


class Eraser(nn.Module):
    """z - P (z - m), P = left right of rank R, for all latents but the first `n_spared`.

    Attributes:
        left_DR: left factor of P.
        right_RD: its right factor.
        mean_D: m, which stays where it is.
        n_spared: latents, from 0 on, that see z itself.
    """

    left_DR: Tensor
    right_RD: Tensor
    mean_D: Tensor

    def __init__(self, left_DR: Tensor, right_RD: Tensor, mean_D: Tensor, n_spared: int) -> None:
        super().__init__()
        self.n_spared = n_spared
        # Not of the SAE's own weights: these are folded, see `fold`.
        self.register_buffer("left_DR", left_DR, persistent=False)
        self.register_buffer("right_RD", right_RD, persistent=False)
        self.register_buffer("mean_D", mean_D, persistent=False)

    def component(self, z_BD: Tensor) -> Tensor:
        """Return right (z - m), [..., R]: what is erased, in the coordinates of `left_DR`."""
        return (z_BD - self.mean_D) @ self.right_RD.T

    def forward(self, z_BD: Tensor) -> Tensor:
        """Return z - P (z - m)."""
        return z_BD - self.component(z_BD) @ self.left_DR.T


@torch.no_grad()
def fit_leace(sae: SAE, split: ActivationSplit, n_spared: int, n_parts: int = 1) -> Eraser:
    """Fit on the normalised activations of all tokens, batch by batch (Belrose et al. 2023, `concept-erasure`).

    What tells a concept in one book is not quite what tells it in the next. With several parts of the texts, each is
    a data set of its own: no linear classifier of any part's labels is better than their mean there.

    Args:
        sae: for its normalisation; statistics are gathered in float64, where it lies.
        split: the tokens.
        n_spared: see `Eraser`.
        n_parts: that the texts, in their order, are cut into; P has the rank of so many times C labels.

    Raises:
        UserError: as many labels of parts as inputs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the way it uses PyTorch
        from concept_erasure import LeaceFitter
    device = sae.pre_bias.device
    n_labels = n_parts * split.n_concepts
    if n_labels >= split.d_model:
        erased = f"{n_parts} of {split.n_concepts} concepts"
        raise UserError(f"erase_parts: {erased} leave nothing of {split.d_model} inputs; choose fewer")
    labels_of = _labels_of_parts(split, n_parts)
    fitter = LeaceFitter(split.d_model, n_labels, device=device, dtype=torch.float64, shrinkage=False, svd_tol=1e-5)
    for rows, acts_BD in split.batches(_TOKENS):
        z_BD = sae.normalise(torch.from_numpy(acts_BD).to(device).double())[0]
        fitter.update(z_BD, labels_of(rows).to(device))
    eraser = fitter.eraser
    return Eraser(eraser.proj_left.float(), eraser.proj_right.float(), fitter.mean_x.float(), n_spared)


def _labels_of_parts(split: ActivationSplit, n_parts: int) -> Callable[[slice | NDArray[np.int64]], Tensor]:
    """Return what gives rows' labels less their mean in the part, [B, parts x C]; those of other parts are 0."""
    texts, text_B = np.unique(split.text_id_B, return_inverse=True)
    part_B = text_B * n_parts // len(texts)
    tokens_P = np.bincount(part_B, minlength=n_parts)
    sums_PC = np.stack([np.bincount(part_B, label_B, n_parts) for label_B in split.label_BC.T], axis=1)
    mean_PC = torch.from_numpy(sums_PC / tokens_P[:, None])

    def labels_of(rows: slice | NDArray[np.int64]) -> Tensor:
        part_R = torch.from_numpy(part_B[rows])
        centred_RC = torch.from_numpy(split.label_BC[rows]) - mean_PC[part_R]
        return (F.one_hot(part_R, n_parts)[:, :, None] * centred_RC[:, None]).flatten(1)

    return labels_of


@torch.no_grad()
def random_eraser(like: Eraser, seed: int) -> Eraser:
    """Return one that erases a random subspace of equal rank: the control."""
    generator = torch.Generator().manual_seed(seed)
    basis_DR = torch.linalg.qr(torch.randn(like.left_DR.shape, generator=generator, dtype=torch.float64)).Q
    basis_DR = basis_DR.to(like.left_DR)
    return Eraser(basis_DR, basis_DR.T.contiguous(), like.mean_D.clone(), like.n_spared)


@torch.no_grad()
def fold(sae: SAE) -> SAE:
    """Return an SAE of plain weights with the same latents, the erasure folded into encoder and biases.

    W (z - P (z - m) - b_pre) + b = W (1 - P) (z - b_pre) + (b + W P (m - b_pre)); where the encoder does not subtract
    b_pre, it is 0 there.
    """
    folded = SAE(sae.config).to(sae.pre_bias)
    folded.load_state_dict(sae.state_dict())
    if (eraser := sae.eraser) is None:
        return folded
    first = eraser.n_spared
    weight_MD = sae.encoder.weight[first:]
    along_MR = weight_MD @ eraser.left_DR
    offset_D = eraser.mean_D - sae.pre_bias if sae.config.subtract_pre_bias else eraser.mean_D
    folded.encoder.weight[first:] = weight_MD - along_MR @ eraser.right_RD
    folded.latent_bias[first:] += along_MR @ (eraser.right_RD @ offset_D)
    return folded
