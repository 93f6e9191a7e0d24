"""The sparse autoencoder of the paper: per-token normalisation, an encoder, TopK, a decoder.

SAEs of other libraries differ in the normalisation, in whether the encoder subtracts the decoder's bias, and in the
activation; the config says so, and the formulas stay the same.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.checks import check_number, check_positive, check_whole
from utils.errors import UserError
from utils.topk_products import decode_top_k, encode_top_k, spread, top_indices

if TYPE_CHECKING:
    from utils.erasure import Eraser

TOPK_POSTACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": torch.relu,
    "topk-sigmoid": torch.sigmoid,
    "topk-tanh": torch.tanh,
    "topk-signed": lambda pre: pre,
}
ACTIVATIONS = (*TOPK_POSTACTS, "relu", "jumprelu", "identity")
NORMALISATIONS = ("layer_norm", "none", "constant_norm")
NORM_EPSILON = 1e-5
JUMPRELU_BANDWIDTH = 1e-3


@dataclass(frozen=True)
class SAEConfig:
    """The shape and activation of an SAE.

    Attributes:
        n_inputs: width of the activations, D.
        n_latents: number of latents, N.
        k: latents kept per token by the TopK activations; the others ignore it.
        activation: one of `ACTIVATIONS`; `topk-signed` keeps the k largest by their size, with their sign.
        normalisation: what comes before the encoder, undone after the decoder: `layer_norm` (the paper's), `none`, or
            `constant_norm` (every token scaled to the norm sqrt(D)).
        input_scale: a factor on all inputs, undone after the decoder; only without another normalisation.
        subtract_pre_bias: whether the encoder sees z - b_pre, or z itself.
        n_gated: latents, from 0 on, that stand outside the TopK: the activation where pre > gate_at, else 0.
        gate_at: see there.
        gate_margin: of a token's gated latents those are 0, too, whose pre lies further than this below the largest of
            them; 0: however far.
        skip_rank: linear features of z that the decoder gets beside the latents.

    Raises:
        UserError: an impossible value, which the message names.
    """

    n_inputs: int
    n_latents: int
    k: int
    activation: str = "topk-sigmoid"
    normalisation: str = "layer_norm"
    input_scale: float = 1.0
    subtract_pre_bias: bool = True
    n_gated: int = 0
    gate_at: float = 0.0
    gate_margin: float = 0.0
    skip_rank: int = 0

    def __post_init__(self) -> None:
        for key, least in {"n_inputs": 1, "n_latents": 1, "k": 1, "n_gated": 0, "skip_rank": 0}.items():
            check_whole(key, getattr(self, key), least)
        check_positive("input_scale", self.input_scale)
        if self.activation not in ACTIVATIONS:
            raise UserError(f"activation: {self.activation!r} is unknown; choose one of {', '.join(ACTIVATIONS)}")
        if self.normalisation not in NORMALISATIONS:
            known = ", ".join(NORMALISATIONS)
            raise UserError(f"normalisation: {self.normalisation!r} is unknown; choose one of {known}")
        if self.input_scale != 1 and self.normalisation != "none":
            raise UserError(f"input_scale: {self.input_scale} does not go with normalisation {self.normalisation}")
        check_gates(self.gate_at, self.gate_margin, self.n_gated > 0, "gated latents (n_gated)")
        if self.n_gated and self.activation not in ("topk", "topk-sigmoid", "topk-tanh"):
            raise UserError(f"n_gated: needs the activation topk, topk-sigmoid or topk-tanh, not {self.activation}")
        if self.k > self.n_latents - self.n_gated:
            besides = f" beside {self.n_gated} gated ones" if self.n_gated else ""
            raise UserError(f"k: {self.k} is more than the {self.n_latents - self.n_gated} latents there are{besides}")

    def to_dict(self) -> dict[str, int | float | str]:
        """Return the fields as plain values for JSON; those of gates and skips only where there are any.

        What identifies an SAE stays what it was before there were gates.
        """
        later = ("n_gated", "gate_at", "gate_margin", "skip_rank")
        return {key: value for key, value in asdict(self).items() if key not in later or value}


def check_gates(gate_at: float, gate_margin: float, gated: bool, gates: str) -> None:
    """Refuse impossible gates, or those of none.

    Args:
        gate_at: see `SAEConfig`.
        gate_margin: see `SAEConfig`.
        gated: whether there are gates.
        gates: what there must be.

    Raises:
        UserError: that.
    """
    check_number("gate_at", gate_at, -100, 100)
    check_number("gate_margin", gate_margin, 0)
    for key, value in {"gate_at": gate_at, "gate_margin": gate_margin}.items():
        if value and not gated:
            raise UserError(f"{key}: is that of {gates}")


class SAEOutput(NamedTuple):
    """What a forward pass gives."""

    reconstruction_BD: Tensor
    latents_BN: Tensor
    pre_BN: Tensor  # before TopK, where the concept loss applies


class TrainingOutput(NamedTuple):
    """What a training step needs of a forward pass; TopK activations keep only what is not 0."""

    reconstruction_BD: Tensor
    concept_pre_BC: Tensor  # before TopK, of the first C latents
    kept_BK: Tensor  # the kept latents, or all, K = N, for other activations
    indices_BK: Tensor | None  # which latents were kept; None: all, in their order


class SAE(nn.Module):
    """z = (x - mean) / (std + 1e-5); pre = W_enc (z - b_pre) + b_lat; xhat = (W_dec f(pre) + b_pre) std + mean.

    The decoder starts as the encoder's transpose; then both train freely.
    """

    def __init__(self, config: SAEConfig) -> None:
        super().__init__()
        self.config = config
        self.pre_bias = nn.Parameter(torch.zeros(config.n_inputs))
        self.encoder = nn.Linear(config.n_inputs, config.n_latents, bias=False)
        self.latent_bias = nn.Parameter(torch.zeros(config.n_latents))
        self.decoder = nn.Linear(config.n_latents, config.n_inputs, bias=False)
        # The columns are contiguous: steps read and write those of the kept latents only.
        self.decoder.weight.data = self.encoder.weight.data.clone().T
        self.eraser: Eraser | None = None  # while it trains, see `utils.erasure`
        if config.skip_rank:
            self.skip_read = nn.Parameter(torch.zeros(config.skip_rank, config.n_inputs), requires_grad=False)
            self.skip_offset = nn.Parameter(torch.zeros(config.skip_rank), requires_grad=False)
            self.skip_write = nn.Parameter(torch.zeros(config.n_inputs, config.skip_rank))
        if config.activation == "jumprelu":
            self.threshold = nn.Parameter(torch.full((config.n_latents,), JUMPRELU_BANDWIDTH))

    def forward(self, acts_BD: Tensor) -> SAEOutput:
        """Encode and decode activations of shape [..., D]."""
        z_BD, mean_B1, std_B1 = self.normalise(acts_BD)
        pre_BN = self.pre_activations(z_BD)
        latents_BN = self.activate(pre_BN)
        reconstruction_BD = self.decode(latents_BN, mean_B1, std_B1) + self.skipped(z_BD) * std_B1
        return SAEOutput(reconstruction_BD, latents_BN, pre_BN)

    def training_forward(
        self, acts_BD: Tensor, n_concepts: int = 0, dtype: torch.dtype | None = None
    ) -> TrainingOutput:
        """Encode and decode as `forward` does, with the cheapest gradients, and keep only what the losses need.

        Args:
            acts_BD: activations, which get no gradient.
            n_concepts: C, latents whose pre-activations are returned.
            dtype: of the products, else the activations'.
        """
        config = self.config
        z_BD, mean_B1, std_B1 = self.normalise(acts_BD)
        if config.activation in TOPK_POSTACTS:
            pre_bias_D = self.pre_bias if config.subtract_pre_bias else torch.zeros_like(self.pre_bias)
            pre_BK, indices_BK, concept_pre_BC = encode_top_k(
                z_BD if self.eraser is None else self.eraser(z_BD),
                pre_bias_D,
                self.encoder.weight,
                self.latent_bias,
                k=config.k,
                n_concepts=max(n_concepts, config.n_gated, 0 if self.eraser is None else self.eraser.n_spared),
                n_gated=config.n_gated,
                concept_z_BD=None if self.eraser is None else z_BD,
                by_size=config.activation == "topk-signed",
                dtype=dtype,
            )
            kept_BK = TOPK_POSTACTS[config.activation](pre_BK)
            if config.n_gated:
                gated_BG = self._gate(concept_pre_BC[:, : config.n_gated])
                numbers_BG = torch.arange(config.n_gated, device=indices_BK.device).expand_as(gated_BG)
                kept_BK, indices_BK = torch.cat([gated_BG, kept_BK], 1), torch.cat([numbers_BG, indices_BK], 1)
            concept_pre_BC = concept_pre_BC[:, :n_concepts]
            decoded_BD = decode_top_k(kept_BK, indices_BK, self.decoder.weight, dtype)
        else:
            with torch.autocast(acts_BD.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
                pre_BN = self.pre_activations(z_BD)
                kept_BK, indices_BK = self.activate(pre_BN), None
                decoded_BD = self.decoder(kept_BK)
            concept_pre_BC, decoded_BD = pre_BN[:, :n_concepts].to(acts_BD.dtype), decoded_BD.to(acts_BD.dtype)
        reconstruction_BD = (decoded_BD + self.pre_bias + self.skipped(z_BD)) * std_B1 + mean_B1
        return TrainingOutput(reconstruction_BD, concept_pre_BC, kept_BK, indices_BK)

    def normalise(self, acts_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (z_BD, mean_B1, std_B1), such that z std + mean is the activation.

        For `layer_norm` the statistics are taken over each token's D values (std with D - 1).
        """
        if self.config.normalisation != "layer_norm":
            if self.config.normalisation == "constant_norm":
                std_B1 = acts_BD.norm(dim=-1, keepdim=True) / self.config.n_inputs**0.5
            else:
                std_B1 = torch.full_like(acts_BD[..., :1], 1 / self.config.input_scale)
            return acts_BD / std_B1, torch.zeros_like(std_B1), std_B1
        mean_B1 = acts_BD.mean(dim=-1, keepdim=True)
        centred_BD = acts_BD - mean_B1
        std_B1 = centred_BD.std(dim=-1, keepdim=True)
        return centred_BD / (std_B1 + NORM_EPSILON), mean_B1, std_B1

    def pre_activations(self, z_BD: Tensor, first: int | None = None) -> Tensor:
        """Return pre_BN = W_enc (z - b_pre) + b_lat, of all latents, or of the `first` ones, which see z itself.

        W_enc b_pre is taken out of the product, so that the gradient of b_pre costs a matrix-vector product and not a
        matrix product over the batch.
        """
        weight_ND, bias_N = self.encoder.weight[:first], self.latent_bias[:first]
        if self.config.subtract_pre_bias:
            bias_N = bias_N - weight_ND @ self.pre_bias
        if self.eraser is None or first is not None:
            return F.linear(z_BD, weight_ND, bias_N)
        spared = self.eraser.n_spared
        pre_BC = F.linear(z_BD, weight_ND[:spared], bias_N[:spared])
        return torch.cat([pre_BC, F.linear(self.eraser(z_BD), weight_ND[spared:], bias_N[spared:])], dim=-1)

    def skipped(self, z_BD: Tensor) -> Tensor:
        """Return what the decoder gets beside the latents, in the normalised space; 0 for most SAEs."""
        if not self.config.skip_rank:
            return z_BD.new_zeros(())
        return (z_BD @ self.skip_read.T - self.skip_offset) @ self.skip_write.T

    def _gate(self, pre_BG: Tensor) -> Tensor:
        config = self.config
        open_BG = pre_BG > config.gate_at
        if config.gate_margin:
            open_BG &= pre_BG >= pre_BG.amax(dim=-1, keepdim=True) - config.gate_margin
        return TOPK_POSTACTS[config.activation](pre_BG) * open_BG

    def activate(self, pre_BN: Tensor) -> Tensor:
        """Return latents_BN: for TopK activations of the k largest pre-activations of a token, all others exactly 0."""
        kind, n_gated = self.config.activation, self.config.n_gated
        if n_gated:
            rest_BM = pre_BN[..., n_gated:]
            indices_BK = top_indices(rest_BM, self.config.k)
            rest_BM = spread(TOPK_POSTACTS[kind](rest_BM.gather(-1, indices_BK)), indices_BK, rest_BM.shape[-1])
            return torch.cat([self._gate(pre_BN[..., :n_gated]), rest_BM], dim=-1)
        if kind in TOPK_POSTACTS:
            indices_BK = top_indices(pre_BN.abs() if kind == "topk-signed" else pre_BN, self.config.k)
            return spread(TOPK_POSTACTS[kind](pre_BN.gather(-1, indices_BK)), indices_BK, pre_BN.shape[-1])
        if kind == "relu":
            return torch.relu(pre_BN)
        if kind == "jumprelu":
            jumped: Tensor = _JumpReLU.apply(pre_BN, self.threshold)
            return jumped
        return pre_BN

    def encode(self, acts_BD: Tensor) -> Tensor:
        """Return latents_BN of activations of shape [..., D]."""
        return self.activate(self.pre_activations(self.normalise(acts_BD)[0]))

    def decode(self, latents_BN: Tensor, mean_B1: Tensor, std_B1: Tensor) -> Tensor:
        """Return reconstruction_BD in the scale that `normalise` took the statistics from."""
        reconstruction: Tensor = (self.decoder(latents_BN) + self.pre_bias) * std_B1 + mean_B1
        return reconstruction


class _JumpReLU(torch.autograd.Function):
    """x where x > threshold, else 0; a straight-through estimate trains the threshold (Rajamanoharan et al. 2024)."""

    @staticmethod
    def forward(ctx, pre_BN: Tensor, threshold_N: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(pre_BN, threshold_N)
        return pre_BN * (pre_BN > threshold_N)

    @staticmethod
    def backward(ctx, grad_BN: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
        pre_BN, threshold_N = ctx.saved_tensors
        near_BN = (pre_BN - threshold_N).abs() < JUMPRELU_BANDWIDTH / 2
        threshold_grad_BN = -threshold_N / JUMPRELU_BANDWIDTH * near_BN * grad_BN
        batch = tuple(range(pre_BN.ndim - 1))
        return grad_BN * (pre_BN > threshold_N), threshold_grad_BN.sum(dim=batch)
