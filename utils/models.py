"""The language models that have a short name, and how each is found and loaded.

`find_model` turns a name into a folder of weights on this machine; `load_model` loads it, as far up as it is needed.
"""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError

from utils.atomic import read_json_object
from utils.distributed import local_rank
from utils.errors import UserError, first_line
from utils.smollm2 import WHEEL_REVISION, converted_folder, fetch_and_convert, verify

logger = logging.getLogger(__name__)

LOAD_DTYPES = ("float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "sequential")  # accelerate's
_NEEDED_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


@dataclass(frozen=True)
class ModelSpec:
    """A model of the registry.

    Attributes:
        hub_id: its name on the hub.
        d_model: the width of its residual stream.
        n_blocks: its decoder blocks.
        gated: whether a licence must be accepted on the hub first.
    """

    hub_id: str
    d_model: int
    n_blocks: int
    gated: bool = False


MODELS = {
    "llama3": ModelSpec("meta-llama/Meta-Llama-3-8B", 4096, 32, gated=True),
    "llama3_instruct": ModelSpec("meta-llama/Meta-Llama-3-8B-Instruct", 4096, 32, gated=True),
    "llama3_70B": ModelSpec("meta-llama/Meta-Llama-3-70B", 8192, 80, gated=True),
    "llama3_70B_instruct": ModelSpec("meta-llama/Meta-Llama-3-70B-Instruct", 8192, 80, gated=True),
    "gemma2": ModelSpec("google/gemma-2-9b", 3584, 42, gated=True),
    "gemma2_2b": ModelSpec("google/gemma-2-2b", 2304, 26, gated=True),
    "smollm2": ModelSpec("HuggingFaceTB/SmolLM2-135M-Instruct", 576, 30),
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
    if name == "smollm2" and converted_folder().is_dir():
        verify(converted_folder())
        logger.info("smollm2: the weights of %s", WHEEL_REVISION)
        return ModelSource(name, converted_folder(), WHEEL_REVISION)
    try:
        folder = _local_snapshot(spec.hub_id) or Path(
            snapshot_download(spec.hub_id, allow_patterns=_NEEDED_FILES, etag_timeout=5)
        )
    except GatedRepoError:
        raise UserError(_how_to_get(name, "its licence is not accepted for this account")) from None
    except (LocalEntryNotFoundError, httpx.HTTPError) as error:
        if name == "smollm2":
            logger.info("smollm2: the hub cannot be reached")
            return ModelSource(name, fetch_and_convert(), WHEEL_REVISION)
        raise UserError(_how_to_get(name, f"the hub cannot be reached ({type(error).__name__})")) from None
    except (RepositoryNotFoundError, HfHubHTTPError) as error:
        raise UserError(_how_to_get(name, first_line(error))) from None
    return ModelSource(name, folder, folder.name)  # the hub's cache names a snapshot's folder after its commit


def _local_snapshot(hub_id: str) -> Path | None:
    """Return the folder of a model in the hub's local cache, if all its weights are there."""
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_NEEDED_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    index = folder / "model.safetensors.index.json"
    files = {"model.safetensors"}
    if index.is_file():
        files = set(read_json_object(index, ("weight_map",))["weight_map"].values())
    return folder if all((folder / file).is_file() for file in files) else None


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
    """Return the GPU where there is one, else the CPU; under torchrun every process of a machine has its own GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() % torch.cuda.device_count())


# What the loaders of transformers raise on damaged or foreign files.
LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)


def load_tokenizer(source: ModelSource) -> Any:
    """Load a model's fast tokenizer.

    Raises:
        UserError: the folder has no tokenizer, or one without character offsets.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
    except LOADING_ERRORS as error:
        raise UserError(f"{source.folder}: no usable tokenizer ({first_line(error)})") from None
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
    except LOADING_ERRORS as error:
        raise UserError(f"{source.folder}/config.json: {first_line(error)}") from None


def compute_dtype(config: Any, device: torch.device, wanted: str | None = None) -> torch.dtype:
    """Return the type a model computes in: the wanted one, else float32 on a CPU, that of its weights on a GPU."""
    if wanted is not None:
        return getattr(torch, wanted)
    return torch.float32 if device.type == "cpu" or config.dtype is None else config.dtype


def attention_implementation(config: Any) -> str:
    """Return which attention a model needs: only the eager one applies Gemma-2's soft-capping of its scores."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def load_model(
    source: ModelSource,
    *,
    n_blocks: int,
    device: torch.device,
    load_dtype: str | None = None,
    device_map: str | None = None,
) -> Any:
    """Load the first `n_blocks` decoder blocks (and no lm_head) of a model, in evaluation mode.

    Args:
        source: where the weights lie.
        n_blocks: how many blocks; the weights of the others are not read.
        device: where the whole of them goes, unless there is a `device_map`.
        load_dtype: one of `LOAD_DTYPES`, see `compute_dtype`.
        device_map: one of `DEVICE_MAPS`: how accelerate spreads the blocks over the GPUs of this machine.

    Raises:
        UserError: the files cannot be read, or lack weights of these blocks.
    """
    from transformers import AutoModel

    config = load_config(source)
    config.num_hidden_layers = n_blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:n_blocks]
    try:
        with quiet_loading():
            model, info = AutoModel.from_pretrained(
                source.folder,
                config=config,
                dtype=compute_dtype(config, device, load_dtype),
                device_map=device_map,
                attn_implementation=attention_implementation(config),
                local_files_only=True,
                output_loading_info=True,
            )
    except LOADING_ERRORS as error:
        raise UserError(f"{source.folder}: the model cannot be loaded ({first_line(error)})") from None
    # transformers fills what it does not find with random numbers; weights of left-out blocks are unexpected instead.
    if lacking := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise UserError(f"{source.folder}: {len(lacking)} weight(s) missing or of a wrong shape, such as {lacking[0]}")
    if device_map is None:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def load_language_model(source: ModelSource, device: torch.device, load_dtype: str | None = None) -> Any:
    """Load a whole causal language model, in evaluation mode.

    Args:
        source: where the weights lie.
        device: where it goes.
        load_dtype: one of `LOAD_DTYPES`, see `compute_dtype`.

    Raises:
        UserError: the files cannot be read.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source)
    try:
        with quiet_loading():
            model: Any = AutoModelForCausalLM.from_pretrained(
                source.folder,
                dtype=compute_dtype(config, device, load_dtype),
                attn_implementation=attention_implementation(config),
                local_files_only=True,
            )
    except LOADING_ERRORS as error:
        raise UserError(f"{source.folder}: the model cannot be loaded ({first_line(error)})") from None
    return model.to(device).eval().requires_grad_(False)


class quiet_loading:  # noqa: N801 - a context manager, named like a function
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
