"""dictionary_learning: `ae.pt` and `config.json`."""

from pathlib import Path
from typing import Any

from utils.atomic import read_json_object
from utils.errors import UserError
from utils.sae import SAEConfig
from utils.sae_formats.common import ForeignSAE, per_latent, read_tensors, take, zeros

_CLASSES = {  # class -> (activation, whether b_dec is subtracted before the encoder)
    "AutoEncoder": ("relu", True),
    "AutoEncoderTopK": ("topk", True),
    "BatchTopKSAE": ("jumprelu", True),  # at inference a fixed threshold stands for the batch's TopK
    "MatryoshkaBatchTopKSAE": ("jumprelu", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
}


def read(folder: Path) -> ForeignSAE:
    """Read one trainer's folder."""
    described = read_json_object(folder / "config.json", ("trainer",))
    trainer: dict[str, Any] = described["trainer"]
    kind = trainer.get("dict_class")
    if kind not in _CLASSES:
        raise UserError(f"{folder}/config.json: dict_class {kind!r} is not supported; known are {', '.join(_CLASSES)}")
    path = folder / "ae.pt"
    tensors = read_tensors(path)
    if "ae" in tensors and "step" in tensors:
        raise UserError(f"{path}: a backup of a training run; only the final ae.pt is an SAE")
    encoder_ND = tensors["W_enc"].T.float() if "W_enc" in tensors else take(path, tensors, "encoder.weight")
    decoder_DN = tensors["W_dec"].T.float() if "W_dec" in tensors else take(path, tensors, "decoder.weight")
    activation, subtract_pre_bias = _CLASSES[kind]
    n_latents, n_inputs = encoder_ND.shape
    k = int(tensors.get("k", trainer.get("k", 1))) if "TopK" in kind else 1
    config = SAEConfig(n_inputs, n_latents, k, activation, normalisation="none", subtract_pre_bias=subtract_pre_bias)
    biased = "encoder.bias" in tensors or "b_enc" in tensors
    weights = {
        "encoder.weight": encoder_ND,
        "latent_bias": take(path, tensors, "encoder.bias", "b_enc") if biased else zeros(n_latents),
        "decoder.weight": decoder_DN,
        "pre_bias": take(path, tensors, "b_dec", "bias"),
    }
    if kind == "AutoEncoder":  # that library moves the decoder's norms into the encoder when it loads one
        norm_N = decoder_DN.norm(dim=0)
        weights["encoder.weight"] = encoder_ND * norm_N[:, None]
        weights["latent_bias"] = weights["latent_bias"] * norm_N
        weights["decoder.weight"] = decoder_DN / norm_N
    if activation == "jumprelu":
        threshold = per_latent(take(path, tensors, "threshold"), n_latents)
        if (threshold < 0).any():
            raise UserError(f"{path}: its threshold was never set; save the SAE after training, or use its TopK class")
        weights["threshold"] = threshold
    origin: dict[str, Any] = {"model": trainer.get("lm_name"), "hook": trainer.get("submodule_name")}
    if isinstance(trainer.get("layer"), int):
        origin |= {"block": trainer["layer"], "site": _site(trainer.get("submodule_name"))}
    return ForeignSAE(config, weights, origin)


def _site(submodule: str | None) -> str:
    name = submodule or ""
    return "mlp" if "mlp" in name else "attention" if "attn" in name else "block"
