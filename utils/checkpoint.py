"""SAE checkpoints: a folder with `sae.safetensors`, `config.json` and, to train on, `resume.safetensors`."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from utils.atomic import atomic_file, read_json_object, write_json
from utils.errors import UserError
from utils.sae import SAE, SAEConfig

FORMAT = 1
_WEIGHTS, _CONFIG, _RESUME = "sae.safetensors", "config.json", "resume.safetensors"
_RESUME_KEYS = ("settings", "history", "concepts")
_CONFIG_KEYS = (
    "sae",
    "training",
    "model",
    "revision",
    "block",
    "site",
    "concepts",
    "seed",
    "epochs_trained",
    "metrics",
)


@dataclass(frozen=True)
class Checkpoint:
    """A trained SAE and what is known of it.

    Attributes:
        sae: in evaluation mode, on the CPU.
        config: `config.json`: sae, training, model, block, site, dataset, concepts, manifest_sha256, seed, versions ...
        folder: where it lies.
    """

    sae: SAE
    config: dict[str, Any]
    folder: Path


def save_checkpoint(folder: Path, sae: SAE, config: dict[str, Any]) -> None:
    """Write weights, then config; a folder without config.json holds no finished SAE."""
    _write_tensors(folder / _WEIGHTS, _weights(sae))
    metrics = {key: value for key, value in config["metrics"].items() if math.isfinite(value)}  # JSON has no NaN
    write_json(folder / _CONFIG, {"format": FORMAT} | config | {"metrics": metrics})


def _weights(sae: SAE) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}


def _write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, readable for others as far as any new file is."""
    with atomic_file(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:  # of a full disk, too
            raise UserError(f"{path}: cannot be written ({error})") from None
        temporary.chmod(mode)


def has_checkpoint(folder: Path) -> bool:
    """Tell whether a folder holds a finished SAE."""
    return (folder / _CONFIG).exists()


def read_checkpoint_config(folder: Path) -> dict[str, Any]:
    """Read a checkpoint's config.json.

    Raises:
        UserError: nothing there, training unfinished, or a newer format.
    """
    if not has_checkpoint(folder):
        state = (
            "its training is not finished; run the same train_SAE.py command again"
            if (folder / _RESUME).exists()
            else ("no checkpoint there; train one with train/train_SAE.py")
        )
        raise UserError(f"{folder}: {state}")
    return read_json_object(folder / _CONFIG, _CONFIG_KEYS, FORMAT)


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Load a trained SAE.

    Raises:
        UserError: nothing there, a damaged file, other tensors than the config promises, or NaN weights.
    """
    folder = Path(folder)
    config = read_checkpoint_config(folder)
    try:
        sae = SAE(SAEConfig(**config["sae"]))
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{folder}/{_CONFIG}: no usable description of the SAE ({error})") from None
    path = folder / _WEIGHTS
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return Checkpoint(build_sae(str(path), sae.config, weights), config, folder)


def build_sae(where: str, config: SAEConfig, weights: dict[str, Tensor]) -> SAE:
    """Return an SAE with these weights, in evaluation mode.

    Raises:
        UserError: missing or unexpected tensors, other shapes, NaN or infinite values; all are listed.
    """
    sae = SAE(config)
    expected = sae.state_dict()
    problems = [f"missing {name}" for name in expected.keys() - weights.keys()]
    problems += [f"unexpected {name}" for name in weights.keys() - expected.keys()]
    for name in sorted(expected.keys() & weights.keys()):
        if weights[name].shape != expected[name].shape:
            problems.append(f"{name} is {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}")
        elif not torch.isfinite(weights[name]).all():
            problems.append(f"{name} holds NaN or inf")
    if problems:
        raise UserError(f"{where}: {', '.join(sorted(problems))}")
    sae.load_state_dict(weights)
    return sae.eval().requires_grad_(False)


@dataclass(frozen=True)
class ResumeState:
    """A training run after so many steps: its tensors, its settings, and the rows of its tables so far."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    history: list[dict[str, Any]]
    concepts: list[dict[str, Any]]


def save_resume(folder: Path, state: ResumeState) -> None:
    """Write a resume state, atomically over the one before."""
    metadata = {key: json.dumps(getattr(state, key)) for key in _RESUME_KEYS}
    _write_tensors(folder / _RESUME, state.tensors, metadata)


def load_resume(folder: Path) -> ResumeState | None:
    """Read a resume state; None where there is none.

    Raises:
        UserError: a damaged file.
    """
    path = folder / _RESUME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        return ResumeState(tensors, **{key: json.loads(metadata[key]) for key in _RESUME_KEYS})
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it to start anew") from None
