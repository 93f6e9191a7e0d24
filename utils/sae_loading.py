"""SAEs from anywhere: our own checkpoints, and the formats of other libraries, local or from the hub."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from utils.atomic import sha256_json
from utils.checkpoint import build_sae, has_checkpoint, load_checkpoint
from utils.errors import UserError, first_line
from utils.models import find_model, load_config, load_tokenizer
from utils.sae import SAE
from utils.sae_formats import dictionary_learning, openai, released, saelens, scopes, sparsify
from utils.sae_formats.common import ForeignSAE

_READERS: dict[str, Callable[[Path, Path | None], ForeignSAE]] = {
    "sparsify": lambda path, _: sparsify.read(path),
    "saelens": lambda path, _: saelens.read(path),
    "gemma_scope": lambda path, _: scopes.read_gemma_scope(path),
    "llama_scope": lambda path, _: scopes.read_llama_scope(path),
    "dictionary_learning": lambda path, _: dictionary_learning.read(path),
    "openai": lambda path, _: openai.read(path),
    "released": released.read_state_dict,
    "determined": released.read_determined,
}
FORMATS = ("guided", *_READERS)
_WRAPPED = {"llama": "llama3_SAE", "gemma2": "gemma2_SAE"}


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE and what is known of it.

    Attributes:
        sae: in evaluation mode, on the CPU, in float32.
        format: one of `FORMATS`.
        origin: where it comes from; `model`, `block`, `site` and `concepts` where they are known.
    """

    sae: SAE
    format: str
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def is_guided(self) -> bool:
        """Whether its first latents were tied to concepts; where its format does not tell, they were not."""
        training = self.origin.get("training") or self.origin.get("determined") or {}
        return float(training.get("cond_loss_scaling") or 0) > 0

    def fingerprint(self) -> str:
        """Return a SHA-256 over the config and all weights."""
        digest = hashlib.sha256(sha256_json(self.sae.config.to_dict()).encode())
        for name, tensor in sorted(self.sae.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_sae(ref: str, *, run_config: str | Path | None = None) -> LoadedSAE:
    """Load an SAE.

    Args:
        ref: a checkpoint folder of ours, or `format:location`. A location is a path or, on the hub,
            `owner/repository/folder/in/it`; of a Determined storage folder, `STORAGE/<config name>_s<scaling>[@EPOCH]`.
        run_config: for `released` and `determined`, the JSON file of the run, where it is not beside the weights.

    Raises:
        UserError: an unknown format, nothing there, missing or unexpected tensors, other shapes, or NaN weights.
    """
    name, colon, location = ref.partition(":")
    if not colon:
        name, location = "guided", ref
    if name not in FORMATS:
        raise UserError(f"{ref}: unknown format {name!r}; known are {', '.join(FORMATS)}")
    if name == "guided":
        checkpoint = load_checkpoint(_local(location, has_checkpoint))
        keys = ("model", "block", "site", "concepts", "dataset", "revision", "seed", "training")
        origin = {key: checkpoint.config[key] for key in keys if key in checkpoint.config}
        return LoadedSAE(checkpoint.sae, name, {"ref": ref} | origin)
    path = Path(location) if name in ("released", "determined") else _local(location, Path.exists)
    foreign = _READERS[name](path, Path(run_config) if run_config is not None else None)
    sae = build_sae(ref, foreign.config, {key: tensor.contiguous() for key, tensor in foreign.weights.items()})
    return LoadedSAE(
        sae, name, {"ref": ref} | {key: value for key, value in foreign.origin.items() if value is not None}
    )


def get_model(
    name: str,
    sae_ref: str,
    *,
    model_path: str | None = None,
    block: int | None = None,
    site: str | None = None,
    run_config: str | Path | None = None,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Load a language model with an SAE attached, and its tokenizer, which pads on the left.

    Args:
        name: of the model, see `utils.models.MODELS`.
        sae_ref: see `load_sae`.
        model_path: a local model folder.
        block: the SAE's block; only where its format does not tell, or to say otherwise.
        site: likewise, by default `block`.
        run_config: see `load_sae`.
        kwargs: for `from_pretrained`, such as `dtype` and `device_map`.

    Raises:
        UserError: as `find_model` and `load_sae`; an unknown block; an SAE that does not fit the model.
    """
    loaded = load_sae(sae_ref, run_config=run_config)
    source = find_model(name, model_path)
    block = block if block is not None else loaded.origin.get("block")
    if block is None:
        raise UserError(f"{sae_ref}: does not tell its block; give block")
    model_class = _wrapped_class(load_config(source).model_type)
    model = model_class.attach(
        source.folder,
        loaded.sae,
        block,
        site or loaded.origin.get("site", "block"),
        concepts=loaded.origin.get("concepts"),
        origin={"ref": sae_ref, "format": loaded.format},
        **kwargs,
    )
    tokenizer = load_tokenizer(source)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _wrapped_class(model_type: str) -> Any:
    # Not at import time: the packages of the wrapped models are built on this one.
    if model_type == "llama":
        from llama3_SAE import LLama3_SAE

        return LLama3_SAE
    if model_type == "gemma2":
        from gemma2_SAE import Gemma2_SAE

        return Gemma2_SAE
    raise UserError(f"no SAE can be attached to a {model_type!r} model; known are {', '.join(_WRAPPED)}")


def _local(location: str, is_there: Callable[[Path], bool]) -> Path:
    """Return a local path as it is; fetch `owner/repository/...` from the hub where there is no such path."""
    path = Path(location)
    parts = path.parts
    if is_there(path) or path.exists() or path.is_absolute() or len(parts) < 2 or parts[0] in (".", "..", "ckpt"):
        return path
    repository, inside = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        pattern = [inside, f"{inside}/*"] if inside else None
        return Path(snapshot_download(repository, allow_patterns=pattern, etag_timeout=5)) / inside
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise UserError(f"{location}: no such path, and not on the hub either ({first_line(error)})") from None
