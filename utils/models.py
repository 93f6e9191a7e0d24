"""The language models that have a short name, and how each is found and loaded.

`find_model` turns a name into a folder of weights on this machine; `load_model` loads it, as far up as it is needed.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from utils.errors import UserError
from utils.smollm2 import WHEEL_REVISION, converted_folder, fetch_and_convert, verify

_NEEDED_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


@dataclass(frozen=True)
class ModelSpec:
    """A model of the registry: its name on the hub, and whether a licence must be accepted there first."""

    hub_id: str
    gated: bool = False


MODELS = {
    "llama3": ModelSpec("meta-llama/Meta-Llama-3-8B", gated=True),
    "llama3_instruct": ModelSpec("meta-llama/Meta-Llama-3-8B-Instruct", gated=True),
    "llama3_70B": ModelSpec("meta-llama/Meta-Llama-3-70B", gated=True),
    "llama3_70B_instruct": ModelSpec("meta-llama/Meta-Llama-3-70B-Instruct", gated=True),
    "gemma2": ModelSpec("google/gemma-2-9b", gated=True),
    "gemma2_2b": ModelSpec("google/gemma-2-2b", gated=True),
    "smollm2": ModelSpec("HuggingFaceTB/SmolLM2-135M-Instruct"),
}


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files lie, and a string that identifies these very weights."""

    name: str
    folder: Path
    revision: str


def find_model(name: str, model_path: str | None = None) -> ModelSource:
    """Find, or fetch, the files of a model.

    Args:
        name: a short name of `MODELS`; with `model_path`, any name, which then only labels the results.
        model_path: a local folder in the Hugging Face layout, used instead of the hub.

    Raises:
        UserError: unknown name, missing folder, a licence not accepted, or a hub that cannot be reached.
    """
    if model_path is not None:
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise UserError(
                f"MODEL {name!r}: a name may hold letters, digits, '_' and '.' only; it becomes part of a path"
            )
        folder = Path(model_path)
        if not (folder / "config.json").is_file():
            raise UserError(f"--model-path {model_path}: not a model folder (it holds no config.json)")
        return ModelSource(name, folder, _local_revision(folder))
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: choose one of {', '.join(MODELS)}, or give --model-path DIR")
    spec = MODELS[name]
    if name == "smollm2" and (folder := converted_folder()).is_dir():
        verify(folder)
        return ModelSource(name, folder, WHEEL_REVISION)
    try:
        folder = Path(_snapshot(spec.hub_id))
    except GatedRepoError:
        raise UserError(_how_to_get(name, "its licence is not accepted for this account")) from None
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, OSError) as error:
        if name != "smollm2":
            reason = (
                "the hub cannot be reached" if isinstance(error, LocalEntryNotFoundError) else str(error).split("\n")[0]
            )
            raise UserError(_how_to_get(name, reason)) from None
        return ModelSource(name, fetch_and_convert(), WHEEL_REVISION)
    return ModelSource(name, folder, folder.name)  # the hub's cache names a snapshot's folder after its commit


def _snapshot(hub_id: str) -> str:
    """Return the folder of a hub model: what the local cache holds, or else a download."""
    try:
        return snapshot_download(hub_id, allow_patterns=_NEEDED_FILES, local_files_only=True)
    except LocalEntryNotFoundError:
        return snapshot_download(hub_id, allow_patterns=_NEEDED_FILES, etag_timeout=5)


def _how_to_get(name: str, reason: str) -> str:
    spec = MODELS[name]
    accept = f"accept the licence at https://huggingface.co/{spec.hub_id} and set HF_TOKEN, or " if spec.gated else ""
    return f"model {name} ({spec.hub_id}): {reason}; {accept}give --model-path DIR with its files"


def _local_revision(folder: Path) -> str:
    """Identify local weights by config.json and the size, first and last MiB of each weight file."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest.update(f"{path.name} {size}".encode() + file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    return f"local-{digest.hexdigest()[:16]}"


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_tokenizer(source: ModelSource) -> Any:
    """Load a model's fast tokenizer.

    Raises:
        UserError: the folder has no tokenizer, or one without character offsets.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{source.folder}: no usable tokenizer ({str(error).splitlines()[0]})") from None
    if not tokenizer.is_fast:
        raise UserError(f"{source.folder}: its tokenizer gives no character offsets; a tokenizer.json is needed")
    return tokenizer


def load_config(source: ModelSource) -> Any:
    """Load the text part of a model's config.

    Raises:
        UserError: the config.json is unreadable or of an unknown architecture.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source.folder, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{source.folder}/config.json: {str(error).splitlines()[0]}") from None


def load_model(source: ModelSource, *, n_blocks: int, device: torch.device) -> Any:
    """Load the first `n_blocks` decoder blocks (and no lm_head) of a model, in evaluation mode.

    On a CPU the weights are float32; on a GPU they are bfloat16 for models trained so (all of Gemma-2), else float16.

    Raises:
        UserError: the files cannot be read.
    """
    from transformers import AutoModel

    config = load_config(source)
    if device.type == "cpu":
        dtype = torch.float32
    else:
        dtype = torch.float16 if config.dtype == torch.float16 else torch.bfloat16
    config.num_hidden_layers = n_blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_blocks]
    # Only the eager implementation applies Gemma-2's soft-capping of attention scores.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    try:
        with _quiet_loading():
            model = AutoModel.from_pretrained(
                source.folder, config=config, dtype=dtype, attn_implementation=attention, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source.folder}: the model cannot be loaded ({str(error).splitlines()[0]})") from None
    return model.to(device).eval().requires_grad_(False)


class _quiet_loading:  # noqa: N801 - a context manager, named like a function
    """Silences the notices about the weights of the blocks that are left out on purpose."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._verbosity = logging.get_verbosity()
        self._bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._verbosity)
        if self._bars:
            logging.enable_progress_bar()
