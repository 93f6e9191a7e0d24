"""OpenAI's sparse_autoencoder: one PyTorch file. TopK there implies LayerNorm of the inputs."""

from pathlib import Path

from utils.errors import UserError
from utils.sae import SAEConfig
from utils.sae_formats.common import ForeignSAE, hook_point, read_tensors, take

_POSTACTS = {"ReLU": "topk", "Sigmoid": "topk-sigmoid", "Tanh": "topk-tanh"}


def read(path: Path) -> ForeignSAE:
    """Read a file such as `10.pt`; buffers with statistics of the training are left aside."""
    tensors = read_tensors(path)
    encoder_ND = take(path, tensors, "encoder.weight")
    kind = tensors.get("activation", "ReLU")
    state = tensors.get("activation_state_dict") or {}
    if kind not in ("ReLU", "TopK", "Identity"):
        raise UserError(f"{path}: activation {kind!r} is not supported; known are ReLU, TopK, Identity")
    if kind == "TopK" and (not isinstance(state.get("k"), int) or state.get("postact_fn", "ReLU") not in _POSTACTS):
        raise UserError(f"{path}: a TopK without k, or with a postact_fn other than {', '.join(_POSTACTS)}")
    config = SAEConfig(
        n_inputs=encoder_ND.shape[1],
        n_latents=len(encoder_ND),
        k=int(state["k"]) if kind == "TopK" else 1,
        activation=_POSTACTS[state.get("postact_fn", "ReLU")] if kind == "TopK" else kind.lower(),
        normalisation="layer_norm" if kind == "TopK" else "none",
    )
    weights = {
        "encoder.weight": encoder_ND,
        "latent_bias": take(path, tensors, "latent_bias"),
        "decoder.weight": take(path, tensors, "decoder.weight"),
        "pre_bias": take(path, tensors, "pre_bias"),
    }
    return ForeignSAE(config, weights, hook_point(f"layers.{path.stem}") if path.stem.isdigit() else {})
