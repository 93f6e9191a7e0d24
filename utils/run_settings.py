"""What makes two training runs the same run, and what a checkpoint tells about its own."""

from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from utils.activation_cache import ActivationCache
from utils.atomic import differences
from utils.errors import UserError
from utils.train_config import SAE_Train_config
from utils.training_core import CLIP_NORM, TrainingCore

# How guidance beyond the paper's is computed; to be raised whenever that changes, so that no run goes on from, or is
# taken for, one of another method.
GUIDANCE = 2


def run_settings(
    config: SAE_Train_config, cache: ActivationCache, cond_loss_scaling: float, seed: int
) -> dict[str, Any]:
    """Return what two runs must share to be the same run.

    The number of epochs may grow, unless the learning rate depends on it. The data are known by their checksum,
    wherever they lie.
    """
    training = config.to_dict() | {
        "cond_loss_scaling": float(cond_loss_scaling),
        "optimizer": "Adam",
        "clip_norm": CLIP_NORM,
    }
    if config.concept_init != "random" or config.text_loss or config.decorrelate:
        training["guidance"] = GUIDANCE
    free = ("ckpt_path", "ds_path", *(("max_epochs",) if config.lr_decay == "none" else ()))
    return {
        "sae": config.sae.to_dict(),
        "training": {key: value for key, value in training.items() if key not in free},
        "manifest_sha256": cache.checksum,
        "seed": seed,
    }


def description(core: TrainingCore, cache: ActivationCache) -> dict[str, Any]:
    """Return where the data came from and how far training got."""
    keys = ("model", "revision", "block", "site", "dataset", "concepts")
    return {key: cache.manifest[key] for key in keys} | {
        "sae": core.sae.config.to_dict(),
        "ds_path": str(cache.folder),
        "epochs_trained": core.steps // core.steps_per_epoch,
        "steps": core.steps,
        "versions": {name: version(name) for name in ("torch", "safetensors")},
    }


def check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compare a folder's settings with those of the run that wants it; options that are not there are at their default.

    Raises:
        UserError: they differ; the message names how.
    """
    defaults = {field.name: field.default for field in fields(SAE_Train_config) if field.default is not MISSING}
    defaults = {key: value for key, value in defaults.items() if key in (wanted.get("training") or {})}
    found, wanted = ({**defaults, **settings, **(settings.get("training") or {})} for settings in (found, wanted))
    keys = (found.keys() | wanted.keys()) - {"training", "sae"}
    if differs := differences(*({key: side.get(key) for key in keys} for side in (found, wanted))):
        raise UserError(f"{folder} holds a checkpoint of other settings ({differs}); remove it or choose another --out")
