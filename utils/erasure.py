"""Erasure: an affine map after which no linear classifier tells a concept from the activations (LEACE)."""

import warnings

import torch
from torch import Tensor, nn

from utils.activation_cache import ActivationSplit
from utils.sae import SAE

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
def fit_leace(sae: SAE, split: ActivationSplit, n_spared: int, labels_BC: Tensor | None = None) -> Eraser:
    """Fit on the normalised activations of all tokens, batch by batch (Belrose et al. 2023, `concept-erasure`).

    Args:
        sae: for its normalisation; statistics are gathered in float64, where it lies.
        split: the tokens.
        n_spared: see `Eraser`.
        labels_BC: in place of the split's own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the way it uses PyTorch
        from concept_erasure import LeaceFitter
    device = sae.pre_bias.device
    labels_BC = torch.from_numpy(split.label_BC) if labels_BC is None else labels_BC
    fitter = LeaceFitter(
        split.d_model, labels_BC.shape[1], device=device, dtype=torch.float64, shrinkage=False, svd_tol=1e-5
    )
    for rows, acts_BD in split.batches(_TOKENS):
        z_BD = sae.normalise(torch.from_numpy(acts_BD).to(device).double())[0]
        fitter.update(z_BD, labels_BC[rows].to(device))
    eraser = fitter.eraser
    return Eraser(eraser.proj_left.float(), eraser.proj_right.float(), fitter.mean_x.float(), n_spared)


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
