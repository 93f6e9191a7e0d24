"""What training minimises: reconstruction, the concepts' latents and, where asked for, the residual by dead latents."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.decorrelation import Decorrelation
from utils.losses import concept_losses, reconstruction_loss
from utils.sae import SAE, TOPK_POSTACTS, TrainingOutput
from utils.text_means import EVIDENCE
from utils.train_config import SAE_Train_config


class StepResult(NamedTuple):
    """The loss of a batch, and what it is made of, without their graph."""

    loss: Tensor
    reconstruction_loss_B: Tensor
    concept_loss_BC: Tensor  # not weighted by cond_loss_scaling; no columns for a vanilla SAE
    output: TrainingOutput
    moments_NM: Tensor | None = None  # for `Decorrelation`


class Objective(nn.Module):
    """L = mean over tokens of L_r + L_c (paper section 3), plus AuxK's share of the residual if the config asks for it.

    Args:
        sae: what is trained.
        config: precision and AuxK.
        cond_loss_scaling: 0 leaves L_c away; s > 0 weights positive labels by s.
        decorrelation: of the other latents from the labels, where the config asks for it.
    """

    def __init__(
        self,
        sae: SAE,
        config: SAE_Train_config,
        cond_loss_scaling: float,
        decorrelation: Decorrelation | None = None,
    ) -> None:
        super().__init__()
        self.decorrelation = decorrelation
        self.sae, self.config, self.scaling = sae, config, cond_loss_scaling
        self.dtype = torch.bfloat16 if config.precision == "bfloat16" else None

    def forward(
        self, acts_BD: Tensor, labels_BC: Tensor, dead: Tensor | None = None, means_BD: Tensor | None = None
    ) -> StepResult:
        """Return the loss of a batch.

        Args:
            acts_BD: the tokens.
            labels_BC: their labels.
            dead: the numbers of the latents that AuxK may use.
            means_BD: the mean normalised activation of each token's text; then L_c is on the text's log-odds.
        """
        acts_BD = acts_BD.to(self.sae.pre_bias.dtype)
        guided_BC = labels_BC if self.scaling > 0 else labels_BC[:, :0]
        output = self.sae.training_forward(acts_BD, guided_BC.shape[1], self.dtype)
        loss_B = reconstruction_loss_B = reconstruction_loss(output.reconstruction_BD, acts_BD)
        guided_pre_BC = output.concept_pre_BC
        if means_BD is not None and self.scaling > 0:
            guided_pre_BC = EVIDENCE * self.sae.pre_activations(means_BD, first=guided_BC.shape[1])
        concept_loss_BC = concept_losses(guided_pre_BC, guided_BC, self.scaling)
        if self.scaling > 0:
            loss_B = loss_B + concept_loss_BC.sum(dim=1)
            concept_loss_BC = torch.where(guided_BC > 0, concept_loss_BC / self.scaling, concept_loss_BC)
        loss = loss_B.mean()
        moments_NM = None
        if self.decorrelation is not None:
            moments_NM = self.decorrelation.batch_moments(output, guided_BC)
            loss = loss + self.config.decorrelate * self.decorrelation(moments_NM)
            moments_NM = moments_NM.detach()
        if dead is not None and len(dead) > 0:
            loss = loss + self.config.aux_k_coefficient * aux_k_loss(
                self.sae, acts_BD, output.reconstruction_BD, dead, self.config.aux_k
            )
        detached = TrainingOutput(*(None if part is None else part.detach() for part in output))  # type: ignore[arg-type]
        return StepResult(loss, reconstruction_loss_B.detach(), concept_loss_BC.detach(), detached, moments_NM)


def aux_k_loss(sae: SAE, acts_BD: Tensor, reconstruction_BD: Tensor, dead: Tensor, k: int) -> Tensor:
    """Return how badly the k strongest dead latents explain what the SAE leaves unexplained (Gao et al. 2024, A.2).

    Residual and prediction are taken in the normalised space, and each token's error relative to its residual's power,
    so that the mean over tokens does not depend on how batches are cut. The gradient reaches the dead latents' rows of
    the encoder, their biases and their decoder columns, nothing else.

    Args:
        sae: with a TopK activation.
        acts_BD: activations.
        reconstruction_BD: the SAE's, without the dead latents' help; it gets no gradient.
        dead: the numbers of the dead latents, [M].
        k: how many of them a token may use; all, if there are fewer.

    Returns:
        A scalar, 1 where they explain nothing.
    """
    z_BD, _, std_B1 = sae.normalise(acts_BD)
    z_BD = z_BD if sae.eraser is None else sae.eraser(z_BD)
    residual_BD = ((acts_BD - reconstruction_BD) / std_B1).detach()
    centred_BD = z_BD - sae.pre_bias.detach() if sae.config.subtract_pre_bias else z_BD
    pre_BM = F.linear(centred_BD, sae.encoder.weight[dead], sae.latent_bias[dead])
    kept_BK, places_BK = pre_BM.topk(min(k, len(dead)), dim=-1)
    latents_BM = torch.zeros_like(pre_BM).scatter(-1, places_BK, TOPK_POSTACTS[sae.config.activation](kept_BK))
    predicted_BD = latents_BM @ sae.decoder.weight[:, dead].T
    return ((residual_BD - predicted_BD).square().sum(dim=1) / residual_BD.square().sum(dim=1)).mean()
