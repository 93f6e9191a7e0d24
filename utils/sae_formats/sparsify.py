"""EleutherAI's sparsify: `sae.safetensors` and `cfg.json`. x - b_dec is encoded; ReLU, then the k largest."""

from pathlib import Path

from utils.atomic import read_json_object
from utils.errors import UserError
from utils.sae import SAEConfig
from utils.sae_formats.common import ForeignSAE, hook_point, read_tensors, take


def read(folder: Path) -> ForeignSAE:
    """Read one hook point's folder, such as `layers.10`."""
    path = folder / "sae.safetensors"
    described = read_json_object(folder / "cfg.json", ("d_in", "k"))
    if described.get("transcode") or described.get("skip_connection"):
        raise UserError(f"{folder}: a transcoder, not an SAE")
    if described.get("activation", "topk") != "topk":
        raise UserError(f"{folder}: activation {described['activation']!r} is not supported, only topk")
    tensors = read_tensors(path)
    encoder_ND = take(path, tensors, "encoder.weight")
    config = SAEConfig(
        n_inputs=described["d_in"],
        # Absent or 0 where expansion_factor counts; the weights know in every case.
        n_latents=len(encoder_ND),
        k=described["k"],
        activation="topk-signed" if described.get("signed") else "topk",
        normalisation="none",
    )
    weights = {
        "encoder.weight": encoder_ND,
        "latent_bias": take(path, tensors, "encoder.bias"),
        "decoder.weight": take(path, tensors, "W_dec").T,
        "pre_bias": take(path, tensors, "b_dec"),
    }
    return ForeignSAE(config, weights, {"hook": folder.name} | hook_point(folder.name))
