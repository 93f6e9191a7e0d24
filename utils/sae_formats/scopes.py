"""Gemma Scope (`params.npz`) and Llama Scope (`hyperparams.json`, `checkpoints/final.safetensors`): JumpReLU SAEs."""

import re
from pathlib import Path

from utils.atomic import read_json_object
from utils.errors import UserError
from utils.sae import SAEConfig
from utils.sae_formats.common import ForeignSAE, hook_point, per_latent, read_tensors, take


def read_gemma_scope(folder: Path) -> ForeignSAE:
    """Read `layer_L/width_W/average_l0_X`, or its `params.npz`. b_dec is not subtracted before the encoder."""
    path = folder if folder.suffix == ".npz" else folder / "params.npz"
    tensors = read_tensors(path)
    encoder_DN = take(path, tensors, "W_enc", "w_enc")
    config = SAEConfig(
        encoder_DN.shape[0], encoder_DN.shape[1], 1, "jumprelu", normalisation="none", subtract_pre_bias=False
    )
    weights = {
        "encoder.weight": encoder_DN.T,
        "latent_bias": take(path, tensors, "b_enc"),
        "decoder.weight": take(path, tensors, "W_dec", "w_dec").T,
        "pre_bias": take(path, tensors, "b_dec"),
        "threshold": per_latent(take(path, tensors, "threshold"), config.n_latents),
    }
    place = str(path)
    if re.search(r"-transcoders\b", place):
        raise UserError(f"{path}: a transcoder, not an SAE")
    layer = re.search(r"layer_(\d+)", place)
    # Those of MLP and attention sit elsewhere than our sites: behind a norm, and before the output projection.
    elsewhere = re.search(r"-(mlp|att)\b", place)
    return ForeignSAE(config, weights, hook_point(f"layers.{layer[1]}") if layer and not elsewhere else {})


def read_llama_scope(folder: Path) -> ForeignSAE:
    """Read one SAE's folder. Inputs are scaled to an average norm of sqrt(D), and b_dec is not subtracted.

    The threshold is that of the scaled pre-activations.
    """
    described = read_json_object(
        folder / "hyperparams.json", ("d_model", "d_sae", "jump_relu_threshold", "dataset_average_activation_norm")
    )
    norms = described["dataset_average_activation_norm"]
    if not isinstance(norms, dict) or not norms.get("in"):
        raise UserError(f"{folder}/hyperparams.json: no dataset_average_activation_norm.in")
    if described.get("hook_point_out", described.get("hook_point_in")) != described.get("hook_point_in"):
        raise UserError(f"{folder}: a transcoder, not an SAE")
    path = folder / "checkpoints" / "final.safetensors"
    tensors = read_tensors(path)
    config = SAEConfig(
        described["d_model"],
        described["d_sae"],
        1,
        "jumprelu",
        normalisation="none",
        input_scale=described["d_model"] ** 0.5 / norms["in"],
        subtract_pre_bias=False,
    )
    weights = {
        "encoder.weight": take(path, tensors, "encoder.weight"),
        "latent_bias": take(path, tensors, "encoder.bias"),
        "decoder.weight": take(path, tensors, "decoder.weight"),
        "pre_bias": take(path, tensors, "decoder.bias"),
        "threshold": per_latent(described["jump_relu_threshold"], config.n_latents),
    }
    hook = described.get("hook_point_in")
    return ForeignSAE(config, weights, {"hook": hook} | hook_point(hook))
