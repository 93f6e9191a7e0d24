"""The key names of the paper's released code: bare state dicts, and Determined's checkpoint folders of them."""

import io
import pickle
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from utils.atomic import read_json, read_json_object
from utils.checkpoint import has_checkpoint, load_checkpoint
from utils.errors import UserError
from utils.sae import SAEConfig
from utils.sae_formats.common import ForeignSAE, read_tensors, take

_NAME = re.compile(r"(?P<name>.+)_s(?P<scaling>\d+(?:\.\d+)?)(?:@(?P<which>best|\d+))?")


def read_state_dict(path: Path, run_config: Path | None) -> ForeignSAE:
    """Read a file with the released key names; its run config tells the activation and k.

    Args:
        path: a safetensors or PyTorch file.
        run_config: the JSON file it was trained with; None takes a `.json` of the same name beside it.
    """
    return _convert(path, read_tensors(path), read_json_object(run_config or path.with_suffix(".json"), ("k",)))


def read_determined(location: Path, run_config: Path | None) -> ForeignSAE:
    """Read a Determined checkpoint: its folder, or `STORAGE/<config name>_s<scaling>[@EPOCH|@best]`.

    Of several that fit, the one trained longest is taken; `@best` takes the lowest `validation_loss` in
    the checkpoints' metadata, or in our trials' `config.json`.
    """
    folder = location if (location / "state_dict.pth").is_file() else _choose(location)
    described = read_json_object(folder / "load_data.json", ("hparams",))
    hparams = described["hparams"] or {}  # null where a trial off the cluster was given none
    config_path = run_config or _find_run_config(folder, Path(str(hparams.get("config_path", ""))))
    path = folder / "state_dict.pth"
    if has_checkpoint(folder):  # of our own trials: there what was erased is folded into the weights
        own = load_checkpoint(folder)
        origin = {"determined": hparams, "epochs_trained": own.config["epochs_trained"]}
        return ForeignSAE(own.sae.config, own.sae.state_dict(), origin)
    with numpy_random_state():
        content = read_tensors(path)
    models = content.get("models_state_dict") or [content.get("model_state_dict")]
    if not isinstance(models[0], dict):
        raise UserError(f"{path}: no models_state_dict; not a checkpoint of Determined's PyTorch trials")
    origin = {"determined": hparams, "epochs_trained": _trial_state(folder).get("epochs_trained")}
    return _convert(path, models[0], read_json_object(config_path, ("k",)), origin)


def numpy_random_state() -> AbstractContextManager[None]:
    """Let PyTorch load what Determined stores beside tensors, NumPy's random state, and no other pickled object."""
    reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    allowed = torch.serialization.safe_globals([reconstruct, np.ndarray, np.dtype, type(np.dtype("uint32"))])
    return cast(AbstractContextManager[None], allowed)


def _convert(
    path: Path, tensors: dict[str, Any], run: dict[str, Any], origin: dict[str, Any] | None = None
) -> ForeignSAE:
    tensors = {name.removeprefix("module.").removeprefix("sae."): tensor for name, tensor in tensors.items()}
    encoder_ND = take(path, tensors, "encoder.weight")
    # The tied decoder of earlier versions keeps the encoder's shape.
    tied = "decoder.linear.weight" in tensors
    decoder_DN = take(path, tensors, "decoder.linear.weight").T if tied else take(path, tensors, "decoder.weight")
    activation = run.get("activation", "topk-sigmoid")
    config = SAEConfig(encoder_ND.shape[1], len(encoder_ND), run["k"], activation)
    weights: dict[str, Tensor] = {
        "encoder.weight": encoder_ND,
        "latent_bias": take(path, tensors, "latent_bias"),
        "decoder.weight": decoder_DN,
        "pre_bias": take(path, tensors, "pre_bias"),
    }
    if activation == "jumprelu":
        weights["threshold"] = take(path, tensors, "threshold").exp()  # kept as logarithms there
    return ForeignSAE(config, weights, {"run_config": run} | (origin or {}))


def _find_run_config(folder: Path, named: Path) -> Path:
    for path in (named, folder / "code" / named):
        if path.is_file():
            return path
    raise UserError(f"{folder}: its run config {named} is not there; give it as run_config")


def _choose(location: Path) -> Path:
    """Return the folder, in a storage folder of many, that a name with a scaling and perhaps an epoch asks for."""
    wanted = _NAME.fullmatch(location.name)
    if wanted is None or not location.parent.is_dir():
        raise UserError(
            f"{location}: neither a Determined checkpoint nor STORAGE/<config name>_s<scaling>[@EPOCH|@best]"
        )
    found: list[tuple[float, Path]] = []
    names = set()
    for folder in sorted(path.parent for path in location.parent.glob("*/load_data.json")):
        hparams = read_json_object(folder / "load_data.json", ("hparams",))["hparams"] or {}
        name = Path(str(hparams.get("config_path"))).stem
        names.add(f"{name}_s{hparams.get('cond_loss_scaling', 0):g}")
        if name != wanted["name"] or float(hparams.get("cond_loss_scaling", 0)) != float(wanted["scaling"]):
            continue
        epoch = _trial_state(folder).get("epochs_trained", 0)
        if wanted["which"] == "best":
            loss = _validation_loss(folder)
            found += [(-loss, folder)] if loss is not None else []
        elif wanted["which"] in (None, str(epoch)):
            found.append((epoch, folder))
    if not found:
        raise UserError(
            f"{location}: no such checkpoint in {location.parent}; it holds {', '.join(sorted(names)) or 'none'}"
        )
    return max(found)[1]


def _validation_loss(folder: Path) -> float | None:
    value = None
    if (path := folder / "metadata.json").is_file():  # the released code's
        value = read_json(path).get("validation_loss")
    if value is None and (path := folder / "config.json").is_file():  # our trial's
        value = read_json_object(path, ("metrics",))["metrics"].get("validation_loss")
    return float(value) if isinstance(value, int | float) else None


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")


def _trial_state(folder: Path) -> dict[str, Any]:
    """Return the counters of `trial_state.pkl`; a pickle that asks for any class is refused, and nothing of it runs."""
    path = folder / "trial_state.pkl"
    if not path.is_file():
        return {}
    try:
        state = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:  # a hostile pickle may raise anything
        raise UserError(f"{path}: not a plain dictionary ({type(error).__name__}: {error}); refused") from None
    return state if isinstance(state, dict) else {}
