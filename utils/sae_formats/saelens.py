"""SAELens 5 and 6: `cfg.json` and `sae_weights.safetensors`."""

from pathlib import Path
from typing import Any

from utils.atomic import read_json_object
from utils.errors import UserError
from utils.sae import SAEConfig
from utils.sae_formats.common import ForeignSAE, hook_point, per_latent, read_tensors, take

# Ours -> theirs. "expected_average_only_in" is folded into the weights when SAELens saves an SAE.
NORMALISATIONS = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
    "expected_average_only_in": "none",
}
ACTIVATIONS = {"standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "topk-sigmoid": "topk-sigmoid"}


def read(folder: Path) -> ForeignSAE:
    """Read one SAE's folder."""
    described = read_json_object(folder / "cfg.json", ("d_in", "d_sae"))
    path = folder / "sae_weights.safetensors"
    tensors = read_tensors(path)
    activation, k = _activation(folder, described)
    normalisation = described.get("normalize_activations") or "none"
    if isinstance(normalisation, bool):  # before version 3
        normalisation = "expected_average_only_in"
    if normalisation not in NORMALISATIONS or described.get("reshape_activations", "none") not in ("none", None):
        raise UserError(f"{folder}: normalize_activations {normalisation!r}, or reshaping, is not supported")
    encoder_DN, decoder_ND = take(path, tensors, "W_enc"), take(path, tensors, "W_dec")
    latent_bias_N = take(path, tensors, "b_enc")
    if described.get("rescale_acts_by_decoder_norm"):  # the same function with the norms moved into the encoder
        norm_N = decoder_ND.norm(dim=1)
        encoder_DN, latent_bias_N, decoder_ND = (
            encoder_DN * norm_N,
            latent_bias_N * norm_N,
            decoder_ND / norm_N[:, None],
        )
    config = SAEConfig(
        n_inputs=described["d_in"],
        n_latents=described["d_sae"],
        k=k or 1,
        activation=activation,
        normalisation=NORMALISATIONS[normalisation],
        subtract_pre_bias=bool(described.get("apply_b_dec_to_input", True)),
    )
    weights = {
        "encoder.weight": encoder_DN.T,
        "latent_bias": latent_bias_N,
        "decoder.weight": decoder_ND.T,
        "pre_bias": take(path, tensors, "b_dec"),
    }
    if activation == "jumprelu":
        weights["threshold"] = per_latent(take(path, tensors, "threshold"), config.n_latents)
    metadata = described.get("metadata", {})
    hook = metadata.get("hook_name") or described.get("hook_name") or described.get("hook_point")
    model = metadata.get("model_name") or described.get("model_name")
    return ForeignSAE(config, weights, {"model": model, "hook": hook} | hook_point(hook))


def _activation(folder: Path, described: dict[str, Any]) -> tuple[str, int | None]:
    architecture = described.get("architecture", "standard")
    options = described.get("activation_fn_kwargs") or {}
    function = described.get("activation_fn") or described.get("activation_fn_str") or "relu"
    if function not in ("relu", "topk") or described.get("finetuning_scaling_factor"):
        raise UserError(f"{folder}/cfg.json: activation {function!r}, or a finetuning_scaling_factor, is not supported")
    if function == "topk":  # version 5 writes a TopK SAE as "standard" with this activation
        architecture = "topk"
    if architecture not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{folder}/cfg.json: architecture {architecture!r} is not supported; known are {known}")
    k = described.get("k") or options.get("k")
    if architecture.startswith("topk") and not isinstance(k, int):
        raise UserError(f"{folder}/cfg.json: a TopK SAE without k")
    return ACTIVATIONS[architecture], k
