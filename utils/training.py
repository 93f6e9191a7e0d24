"""Training an SAE on cached activations: one step, an evaluation, and the loop over epochs."""

import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from utils.activation_cache import ActivationCache
from utils.activation_reader import ActivationReader, Batch
from utils.atomic import atomic_file, differences
from utils.checkpoint import (
    ResumeState,
    has_checkpoint,
    load_resume,
    read_checkpoint_config,
    save_checkpoint,
    save_resume,
)
from utils.errors import UserError
from utils.losses import concept_loss, fraction_of_variance_unexplained, reconstruction_loss
from utils.models import default_device
from utils.sae import SAE
from utils.sae_quality import activation_quality
from utils.train_config import SAE_Train_config

logger = logging.getLogger(__name__)

CLIP_NORM = 1.0
_QUICK_EVALUATION_TOKENS = 8_192  # after each epoch but the last
_SECONDS_BETWEEN_SAVES = 30.0
_STEPS_BETWEEN_BARS = 10


class Trainer:
    """An SAE, its optimizer and its data; everything a run is, and all of it can be saved and restored."""

    def __init__(
        self,
        config: SAE_Train_config,
        cache: ActivationCache,
        cond_loss_scaling: float,
        seed: int,
        device: torch.device | None = None,
    ) -> None:
        self.config = config
        self.data = cache.split("train")
        self.cond_loss_scaling = cond_loss_scaling
        self.seed = seed
        self.device = device or default_device()
        self.reader = ActivationReader(self.data, config.batch_size, seed, device=self.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.sae = SAE(config.sae).to(self.device)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=config.lr, fused=True)
        self.history: list[dict[str, Any]] = []

    @property
    def epochs_trained(self) -> int:
        """The number of whole epochs so far."""
        return len(self.history)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Update the SAE on one batch (paper: L = mean of L_r + L_c, clip at 1.0, Adam); return detached scalars."""
        acts_BD = batch.acts_BD.to(self.sae.pre_bias.dtype)
        output = self.sae(acts_BD)
        loss_r = reconstruction_loss(output.reconstruction_BD, acts_BD).mean()
        loss_c = torch.zeros((), device=self.device)
        if self.cond_loss_scaling > 0:
            loss_c = concept_loss(output.pre_BN, batch.labels_BC, self.cond_loss_scaling).mean()
        loss = loss_r + loss_c
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), CLIP_NORM)
        self.optimizer.step()
        with torch.no_grad():
            return {
                "loss": loss.detach(),
                "reconstruction_loss": loss_r.detach(),
                "concept_loss": loss_c.detach(),
                "l0": (output.latents_BN != 0).sum(dim=1, dtype=torch.float32).mean(),
                "fvu": fraction_of_variance_unexplained(output.reconstruction_BD, acts_BD),
            }

    def train_epoch(self, bar: tqdm) -> dict[str, float]:
        """Train on every full batch once; return the means over the epoch.

        Raises:
            UserError: the loss is no longer a number.
        """
        sums: dict[str, Tensor] = {}
        n_steps = 0
        for batch in self.reader.epoch(self.epochs_trained):
            values = self.step(batch)
            n_steps += 1
            sums = {key: sums.get(key, torch.zeros_like(value)) + value for key, value in values.items()}
            bar.update(len(batch.rows_B))
            if n_steps % _STEPS_BETWEEN_BARS == 0:  # reading a value waits for the GPU
                shown = {"loss": "loss", "l0": "L0", "fvu": "FVU"}
                bar.set_postfix({name: f"{values[key].item():.3g}" for key, name in shown.items()})
        means = {key: (value / n_steps).item() for key, value in sums.items()}
        if not np.isfinite(means["loss"]):
            raise UserError(
                f"the loss became {means['loss']} in epoch {self.epochs_trained + 1}; lower lr in the config"
            )
        return means

    def state(self) -> dict[str, Tensor]:
        """Return the weights and Adam's moments, on the CPU, under the weights' names."""
        tensors = {}
        for name, parameter in self.sae.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], history: list[dict[str, Any]]) -> None:
        """Go back to a saved state."""
        self.history = list(history)
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"].to(self.device) for key in keys}


def train(
    config: SAE_Train_config, cache: ActivationCache, folder: Path, *, cond_loss_scaling: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Train an SAE into a checkpoint folder; go on where an earlier run stopped; do nothing where all is done.

    Args:
        config: what to train.
        cache: the activations, with a train split.
        folder: the checkpoint.
        cond_loss_scaling: 0 leaves the concept loss away (a vanilla SAE); s > 0 weights positive labels by s.
        seed: of the initial weights and the order of the tokens.

    Returns:
        The last epoch's losses and measures.

    Raises:
        UserError: labels that guidance needs are missing, or a folder with a checkpoint of other settings.
    """
    if cond_loss_scaling > 0 and not cache.concepts:
        raise UserError(f"{cache.folder} has no labels to guide by; use --cond-loss-scaling 0")
    if cond_loss_scaling > 0 and len(cache.concepts) > config.sae.n_latents:
        raise UserError(f"{len(cache.concepts)} concepts need as many latents, but there are {config.sae.n_latents}")
    settings = _settings(config, cache, cond_loss_scaling, seed)
    if has_checkpoint(folder):
        done = read_checkpoint_config(folder)
        _check_same(folder, {key: done.get(key) for key in settings}, settings)
        if done["epochs_trained"] >= config.max_epochs:
            logger.info("%s is trained already (%s epochs)", folder, done["epochs_trained"])
            return dict(done["metrics"])
    trainer = Trainer(config, cache, cond_loss_scaling, seed)
    if (state := load_resume(folder)) is not None:
        _check_same(folder, state.settings, settings)
        trainer.restore(state.tensors, state.history)
        logger.info("going on with %s after epoch %s", folder, trainer.epochs_trained)
    _run_epochs(trainer, cache, folder, settings)
    metrics = trainer.history[-1]
    _write_history(folder, trainer.history)
    save_checkpoint(folder, trainer.sae, settings | _description(trainer, cache) | {"metrics": metrics})
    return dict(metrics)


def _run_epochs(trainer: Trainer, cache: ActivationCache, folder: Path, settings: dict[str, Any]) -> None:
    config = trainer.config
    split = cache.evaluation_split()
    tokens_per_epoch = len(trainer.reader) * config.batch_size
    saved = time.monotonic()
    with tqdm(
        total=tokens_per_epoch * config.max_epochs,
        initial=tokens_per_epoch * trainer.epochs_trained,
        unit="tok",
        unit_scale=True,
        desc=folder.name,
    ) as bar:
        while trainer.epochs_trained < config.max_epochs:
            last = trainer.epochs_trained + 1 == config.max_epochs
            row: dict[str, Any] = {"epoch": trainer.epochs_trained + 1} | trainer.train_epoch(bar)
            if split is not None:
                max_tokens = None if last else _QUICK_EVALUATION_TOKENS
                measured = activation_quality(trainer.sae, cache.split(split), config.batch_size, max_tokens)
                row |= {f"{split}_{key}": value for key, value in measured.items()}
            trainer.history.append(row)
            if last or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                save_resume(folder, ResumeState(trainer.state(), settings, trainer.history))
                saved = time.monotonic()


def _settings(config: SAE_Train_config, cache: ActivationCache, cond_loss_scaling: float, seed: int) -> dict[str, Any]:
    """Return what two runs must share to be the same run; the number of epochs may grow."""
    training = config.to_dict()
    for key in ("max_epochs", "ckpt_path", "ds_path"):  # the data are known by their checksum, wherever they lie
        del training[key]
    return {
        "sae": config.sae.to_dict(),
        "training": training
        | {"cond_loss_scaling": float(cond_loss_scaling), "optimizer": "Adam", "clip_norm": CLIP_NORM},
        "manifest_sha256": cache.checksum,
        "seed": seed,
    }


def _description(trainer: Trainer, cache: ActivationCache) -> dict[str, Any]:
    manifest = cache.manifest
    keys = ("model", "revision", "block", "site", "dataset", "concepts")
    return {key: manifest[key] for key in keys} | {
        "ds_path": str(cache.folder),
        "epochs_trained": trainer.epochs_trained,
        "versions": {name: version(name) for name in ("torch", "safetensors")},
    }


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    found, wanted = (settings | settings["training"] for settings in (found, wanted))
    for settings in (found, wanted):
        del settings["training"], settings["sae"]
    if differs := differences(found, wanted):
        raise UserError(f"{folder} holds a checkpoint of other settings ({differs}); remove it or choose another --out")


def _write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    with atomic_file(folder / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)
