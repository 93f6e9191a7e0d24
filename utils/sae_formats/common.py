"""What the readers of foreign SAE formats share: safe reading of tensor files, and what they return."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from utils.errors import UserError, first_line
from utils.sae import SAEConfig


@dataclass(frozen=True)
class ForeignSAE:
    """An SAE in our terms.

    Attributes:
        config: its shape, activation and normalisation.
        weights: under our names: pre_bias, encoder.weight, latent_bias, decoder.weight, for JumpReLU threshold.
        origin: what is known of it: model, block, site, concepts, and whatever else the format keeps.
    """

    config: SAEConfig
    weights: dict[str, Tensor]
    origin: dict[str, Any] = field(default_factory=dict)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a safetensors, PyTorch or NumPy file without running anything in it.

    Raises:
        UserError: missing, damaged, or holding more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UserError(f"{path}: holds more than tensors and plain values; refused, as it could run code") from None
    except Exception as error:  # a damaged file may raise anything: struct, assertion, index and zip errors were seen
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a dictionary of tensors, not a {type(content).__name__}")
    return content


def take(path: Path, tensors: dict[str, Any], *names: str) -> Tensor:
    """Return the first of some names that is there, as float32.

    Raises:
        UserError: none of them is; the names that are there are listed.
    """
    for name in names:
        if isinstance(tensors.get(name), Tensor):
            return tensors[name].float()
    raise UserError(f"{path}: no {' or '.join(names)}; it holds {', '.join(sorted(map(str, tensors)))}")


def zeros(*shape: int) -> Tensor:
    """Return zeros, for a bias that a format lacks."""
    return torch.zeros(*shape)


def per_latent(threshold: Any, n_latents: int) -> Tensor:
    """Return a threshold of each latent from a number, or from a tensor with one or all of them."""
    values = torch.as_tensor(threshold, dtype=torch.float32).reshape(-1)
    return values.expand(n_latents).clone() if len(values) == 1 else values


_SITES = {
    "": "block", "hook_resid_post": "block", "mlp": "mlp", "hook_mlp_out": "mlp",
    "attn": "attention", "self_attn": "attention", "hook_attn_out": "attention",
}  # fmt: skip


def hook_point(name: str | None) -> dict[str, Any]:
    """Return block and site from a hook's name, such as `blocks.10.hook_resid_post` or `layers.10.mlp`.

    Nothing for a hook that is none of our sites; the user has to say then.
    """
    found = re.fullmatch(r"(?:.*\.)?(?:blocks|layers?)[._](\d+)(?:\.(.+))?", name or "")
    if found is None:
        return {}
    block, rest = int(found[1]), found[2] or ""
    if rest == "hook_resid_pre":  # the residual stream before a block is that after the block before
        return {"block": block - 1, "site": "block"} if block else {}
    return {"block": block, "site": _SITES[rest]} if rest in _SITES else {}
