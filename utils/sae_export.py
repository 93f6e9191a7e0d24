"""Our SAEs for other libraries: SAELens files, what SAEBench expects of an SAE, and the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file
from torch import Tensor, nn

from utils.atomic import atomic_folder
from utils.checkpoint import read_checkpoint_config
from utils.errors import UserError, first_line
from utils.models import MODELS
from utils.sae import SAE, SAEConfig
from utils.sae_formats.saelens import ACTIVATIONS, NORMALISATIONS
from utils.sae_loading import LoadedSAE

_HOOKS = {"block": "hook_resid_post", "mlp": "hook_mlp_out", "attention": "hook_attn_out"}


def to_saelens(loaded: LoadedSAE, folder: str | Path) -> Path:
    """Write `cfg.json` and `sae_weights.safetensors` as SAELens 6 does.

    A `topk-sigmoid` SAE has no class there; `utils.saelens_class.register` gives it one before it is loaded.

    Raises:
        UserError: an activation that SAELens cannot express.
    """
    config, folder = loaded.sae.config, Path(folder)
    normalisations = {ours: theirs for theirs, ours in reversed(NORMALISATIONS.items())}
    architectures = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    if config.n_gated or config.skip_rank:
        raise UserError(
            "SAELens has no SAEs with gated latents or a skip; train with concept_gate topk, without erased_skip"
        )
    if config.activation not in architectures:
        raise UserError(f"SAELens has no {config.activation!r} SAEs; it takes {', '.join(architectures)}")
    described: dict[str, Any] = {
        "d_in": config.n_inputs,
        "d_sae": config.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.subtract_pre_bias,
        "normalize_activations": normalisations[config.normalisation],
        "reshape_activations": "none",
        "metadata": _metadata(loaded),
        "architecture": architectures[config.activation],
    }
    if config.activation.startswith("topk"):
        described |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    weights = {name: tensor.contiguous() for name, tensor in _matrices(loaded.sae).items()}
    if config.activation == "jumprelu":
        weights["threshold"] = loaded.sae.threshold.detach()
    if folder.exists():
        raise UserError(f"{folder}: exists already; choose another folder")
    with atomic_folder(folder) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in weights.items()}, temporary / "sae_weights.safetensors"
        )
        (temporary / "cfg.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def _metadata(loaded: LoadedSAE) -> dict[str, Any]:
    origin = loaded.origin
    metadata: dict[str, Any] = {"sae_lens_version": "6.0.0", "concepts": origin.get("concepts", [])}
    if origin.get("model") is not None:
        metadata["model_name"] = MODELS[origin["model"]].hub_id if origin["model"] in MODELS else origin["model"]
    if origin.get("block") is not None:
        metadata["hook_name"] = f"blocks.{origin['block']}.{_HOOKS[origin.get('site', 'block')]}"
    return metadata


def _matrices(sae: SAE) -> dict[str, Tensor]:
    """Return W_enc [D, N], b_enc [N], W_dec [N, D], b_dec [D], with the input scale folded in."""
    scale = sae.config.input_scale
    return {
        "W_enc": sae.encoder.weight.detach().T * scale,
        "b_enc": sae.latent_bias.detach(),
        "W_dec": sae.decoder.weight.detach().T / scale,
        "b_dec": sae.pre_bias.detach() / scale,
    }


@dataclass(frozen=True)
class SAEBenchConfig:
    """What SAEBench reads of an SAE's config."""

    model_name: str
    d_in: int
    d_sae: int
    hook_name: str
    hook_layer: int
    dtype: str = "float32"


class SAEBenchView(nn.Module):
    """An SAE with the members that SAEBench calls: encode, decode, forward, W_enc, W_dec, b_enc, b_dec, cfg.

    Where the SAE normalises each token, `decode` undoes it with the statistics of the tokens last encoded.
    """

    def __init__(self, loaded: LoadedSAE) -> None:
        super().__init__()
        if loaded.sae.config.skip_rank:
            raise UserError("SAEBench decodes latents alone; train without erased_skip")
        self.sae = loaded.sae
        metadata, config = _metadata(loaded), loaded.sae.config
        self.cfg = SAEBenchConfig(
            model_name=metadata.get("model_name", "unknown"),
            d_in=config.n_inputs,
            d_sae=config.n_latents,
            hook_name=metadata.get("hook_name", "unknown"),
            hook_layer=loaded.origin.get("block", -1),
        )
        for name, tensor in _matrices(loaded.sae).items():
            self.register_buffer(name, tensor)
        self._statistics: tuple[Tensor, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.sae.pre_bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Their type."""
        return self.sae.pre_bias.dtype

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of activations of shape [..., D]."""
        z_BD, mean_B1, std_B1 = self.sae.normalise(x)
        self._statistics = (mean_B1, std_B1)
        return self.sae.activate(self.sae.pre_activations(z_BD))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the reconstruction of the tokens last encoded from their latents, changed or not.

        Raises:
            ValueError: other tokens than those last encoded.
        """
        if self._statistics is None or self._statistics[0].shape[:-1] != latents.shape[:-1]:
            raise ValueError("decode needs the statistics of these tokens; encode them first")
        return self.sae.decode(latents, *self._statistics)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction."""
        return self.decode(self.encode(x))


def model_card(folder: Path, results: dict[str, float] | None = None) -> str:
    """Return a README for the hub, made from a checkpoint's own metadata and, where given, measured results."""
    config = read_checkpoint_config(folder)
    sae, training = config["sae"], config["training"]
    hub_id = MODELS[config["model"]].hub_id if config["model"] in MODELS else config["model"]
    concepts = ", ".join(f"{latent}: {concept}" for latent, concept in enumerate(config["concepts"])) or "none"
    guided = training["cond_loss_scaling"] > 0
    lines = [
        "---",
        "library_name: guided-monosemanticity",
        f"base_model: {hub_id}",
        "tags: [sparse-autoencoder, interpretability]",
        "---",
        f"# {folder.name}",
        "",
        f"A {'guided' if guided else 'vanilla'} sparse autoencoder for the {config['site']} output of block "
        f"{config['block']} of {hub_id}, after *Measuring and Guiding Monosemanticity* (arXiv 2506.19382).",
        "",
        *(f"- {line}" for line in _architecture(SAEConfig(**sae))),
        f"- trained on {config.get('dataset', 'unknown')} for {config['epochs_trained']} epochs, "
        f"seed {config['seed']}, batch {training['batch_size']}, learning rate {training['lr']}",
        f"- latents tied to concepts: {concepts if guided else 'none'}",
        "",
        "| measure | value |",
        "|---|---|",
    ]
    lines += [f"| {key} | {value:.4g} |" for key, value in (config["metrics"] | (results or {})).items()]
    lines += ["", "```python", "from utils.sae_loading import load_sae", "sae = load_sae(FOLDER).sae", "```", ""]
    return "\n".join(lines)


def _architecture(sae: SAEConfig) -> list[str]:
    lines = [f"{sae.n_inputs} inputs, {sae.n_latents} latents, k = {sae.k}, activation {sae.activation}"]
    if sae.n_gated:
        margin = f", or more than {sae.gate_margin:g} below the largest of theirs" if sae.gate_margin else ""
        gate = f"0 where their pre-activation is not above {sae.gate_at:g}{margin}"
        lines.append(f"the first {sae.n_gated} latents stand outside the TopK: {gate}")
    if sae.skip_rank:
        lines.append(f"{sae.skip_rank} linear features of the input go to the decoder past the latents")
    return lines


def push_to_hub(
    folder: str | Path, repository: str, *, results: dict[str, float] | None = None, private: bool = False
) -> str:
    """Upload a checkpoint (weights, config, card; not the training state) and return its address.

    The token comes from the environment (HF_TOKEN) or the hub's own login.

    Raises:
        UserError: no checkpoint there, or the hub refuses.
    """
    folder = Path(folder)
    card = model_card(folder, results)
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, allow_patterns=["sae.safetensors", "config.json", "history.csv"]
        )
        api.upload_file(repo_id=repository, path_or_fileobj=card.encode(), path_in_repo="README.md")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"{repository}: the hub refuses ({first_line(error)})") from None
    return f"https://huggingface.co/{repository}"
