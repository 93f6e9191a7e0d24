"""Decorrelation: a penalty on the correlations of the latents that are tied to no concept with the labels.

Squared correlations of one batch are mostly noise, and would punish latents for varying at all. The penalty's gradient
is therefore that of the squared correlation over many batches: the running covariance times the batch's own.
"""

import torch
from torch import Tensor, nn

from utils.sae import TrainingOutput

_KEPT = 0.98  # of the running moments in a step
_TINY = 1e-30
_LEAST_VARIANCE = 1e-6  # of a latent; one that hardly fires says nothing of itself


class Decorrelation(nn.Module):
    """Running moments of the latents, and the penalty.

    Args:
        n_latents: N.
        label_mean_C: how often each label is there, over all training tokens.

    Attributes:
        moments_NM: running means of each latent, its square, and its product with each centred label; M = C + 2.
    """

    moments_NM: Tensor
    label_mean_C: Tensor

    def __init__(self, n_latents: int, label_mean_C: Tensor) -> None:
        super().__init__()
        self.register_buffer("label_mean_C", label_mean_C, persistent=False)
        moments_NM = torch.zeros(n_latents, 2 + len(label_mean_C), device=label_mean_C.device)
        self.register_buffer("moments_NM", moments_NM, persistent=False)

    def batch_moments(self, output: TrainingOutput, labels_BC: Tensor) -> Tensor:
        """Return the same moments over a batch, with their graph; those of parts of a batch average to the whole's."""
        kept_BK, n_latents = output.kept_BK, len(self.moments_NM)
        centred_BC = labels_BC.to(kept_BK.dtype) - self.label_mean_C
        columns = [kept_BK, kept_BK.square(), *(kept_BK * centred_B[:, None] for centred_B in centred_BC.T)]
        if output.indices_BK is None:
            return torch.stack([column_BN.mean(dim=0) for column_BN in columns], dim=1)
        flat, zeros_N = output.indices_BK.flatten(), kept_BK.new_zeros(n_latents)
        sums = [zeros_N.index_add(0, flat, column_BK.flatten()) for column_BK in columns]
        return torch.stack(sums, dim=1) / len(kept_BK)

    def forward(self, moments_NM: Tensor) -> Tensor:
        """Return twice the running correlations times the batch's, as weighted mean over latents and sum over concepts.

        Its gradient is that of the squared correlations where their weights and the scale of latents and labels are
        held. A latent weighs as much as its own squared correlation: what is left of a concept should not gather in
        one latent that tells it nearly as well as its own does.
        """
        n_concepts = len(self.label_mean_C)
        running_NC, own_NC = self.moments_NM[n_concepts:, 2:], moments_NM[n_concepts:, 2:]
        squared_NC = self.squared_correlations()[n_concepts:]
        weight_NC = squared_NC * (squared_NC.mean(dim=0) / squared_NC.square().mean(dim=0).clamp(min=_TINY))
        return 2 * (weight_NC * running_NC * own_NC / self._scale()[n_concepts:]).mean(dim=0).sum()

    @torch.no_grad()
    def update(self, moments_NM: Tensor) -> None:
        """Take in the moments of a whole step, of all processes."""
        self.moments_NM.mul_(_KEPT).add_(moments_NM, alpha=1 - _KEPT)

    @torch.no_grad()
    def squared_correlations(self) -> Tensor:
        """Return those of all latents, [N, C], over the batches of late."""
        return self.moments_NM[:, 2:].square() / self._scale()

    def _scale(self) -> Tensor:
        """Return the products of the variances of latents and labels, [N, C]."""
        mean_N, square_N = self.moments_NM[:, 0], self.moments_NM[:, 1]
        variance_N = (square_N - mean_N.square()).clamp(min=0) + _LEAST_VARIANCE
        variance_C = self.label_mean_C * (1 - self.label_mean_C) + 1e-9
        return variance_N[:, None] * variance_C
