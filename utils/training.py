"""Training in one process, or in several under torchrun: the loop around the core, its logs and its checkpoints."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.activation_cache import ActivationCache
from utils.atomic import lock_file, write_json
from utils.checkpoint import (
    ResumeState,
    has_checkpoint,
    load_resume,
    read_checkpoint_config,
    save_checkpoint,
    save_resume,
)
from utils.distributed import any_process, process_group, rank, same_in_all_processes, world_size
from utils.erasure import fold
from utils.errors import UserError
from utils.models import default_device
from utils.run_log import RunLog
from utils.run_settings import check_same, description, run_settings
from utils.stopping import Stopped, TerminationSignal
from utils.train_config import SAE_Train_config
from utils.training_core import TrainingCore

logger = logging.getLogger(__name__)

_QUICK_EVALUATION_TOKENS = 8_192  # after each epoch but the last
_SECONDS_BETWEEN_SAVES = 30.0
_SHARE_OF_SAVING = 0.05  # of the time
_FAILURE = "failed_step.json"
_LOCK_SECONDS = 3  # a process that was just killed holds its lock for a moment


def train(
    config: SAE_Train_config, cache: ActivationCache, folder: Path, *, cond_loss_scaling: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Train an SAE into a checkpoint folder; go on where an earlier run stopped; do nothing where all is done.

    However often it is interrupted, and wherever, the weights in the end are the same.

    Args:
        config: what to train.
        cache: the activations, with a train split.
        folder: the checkpoint.
        cond_loss_scaling: 0 leaves the concept loss away (a vanilla SAE); s > 0 weights positive labels by s.
        seed: of the initial weights and the order of the tokens.

    Returns:
        The last epoch's losses and measures, or the best one's where training stopped early.

    Raises:
        UserError: labels that guidance needs are missing, a folder with a checkpoint of other settings, or a loss that
            is no number.
        Stopped: by SIGTERM, after saving.
    """
    settings = run_settings(config, cache, cond_loss_scaling, seed)
    with process_group(), _alone_in(folder):
        done = _finished(folder, config, settings)
        if not same_in_all_processes(int(done is not None), default_device()):
            raise UserError(f"{folder}: not all machines see the same; --out must be a folder that they share")
        if done is not None:
            return done
        core = TrainingCore(config, cache, cond_loss_scaling, seed, rank=rank(), world_size=world_size())
        if world_size() > 1:
            core.module = DistributedDataParallel(core.objective)
        return _Run(core, cache, folder, settings).to_its_end()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder, and remove what killed ones were writing."""
    if rank() > 0:
        yield
        return
    try:
        with FileLock(lock_file(folder), timeout=_LOCK_SECONDS):
            for leftover in folder.glob(".tmp-*"):
                leftover.unlink(missing_ok=True)
            yield
    except Timeout:
        raise UserError(f"{folder}: another process is training into it") from None


def _finished(folder: Path, config: SAE_Train_config, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the metrics of a run that has nothing left to do."""
    if not has_checkpoint(folder):
        return None
    done = read_checkpoint_config(folder)
    check_same(folder, {key: done.get(key) for key in settings}, settings)
    if done["epochs_trained"] < config.max_epochs and not done.get("stopped_early"):
        return None
    logger.info("%s is trained already (%s epochs)", folder, done["epochs_trained"])
    return dict(done["metrics"])


class _Run:
    """A core on its way through the epochs, with all that is written meanwhile (by the first process)."""

    def __init__(self, core: TrainingCore, cache: ActivationCache, folder: Path, settings: dict[str, Any]) -> None:
        self.core, self.cache, self.folder, self.settings = core, cache, folder, settings
        self.split = cache.evaluation_split()
        self.chief = core.rank == 0
        self.epoch_sums = core.window.empty()
        self.history: list[dict[str, Any]] = []
        self.concepts: list[dict[str, Any]] = []
        self.best = self._weights()  # of the best epoch so far; only early stopping asks for them
        if (state := load_resume(folder)) is not None:
            check_same(folder, state.settings, settings)
            core.restore(state.tensors)
            for name, value in self._sums():
                value.copy_(state.tensors[name])
            self.best = {name: state.tensors[f"best.{name}"] for name in self.best if f"best.{name}" in state.tensors}
            self.history, self.concepts = state.history, state.concepts
            logger.info("going on with %s after step %s of %s", folder, core.steps, core.total_steps)
        elif self.chief:
            _estimate(core, folder)
        if not same_in_all_processes(core.steps, core.device):
            raise UserError(f"{folder}: not all machines see the same; --out must be a folder that they share")
        self.saved_at, self.saving_took = time.monotonic(), 0.0
        self.window_began = self.epoch_began = time.perf_counter()
        self.window_from = self.epoch_from = core.steps

    def to_its_end(self) -> dict[str, Any]:
        core = self.core
        self.log = RunLog(self.folder, core.steps) if self.chief else None
        with TerminationSignal() as stop, self._bar() as bar:
            while core.steps < core.total_steps and not self._has_stopped_early():
                for batch in core.batches():
                    core.step(batch)
                    bar.update(core.config.batch_size)
                    if core.window_ends or (stop.received and core.world_size == 1):
                        stopped = any_process(stop.received, core.device)
                        self._check_finite()
                        if core.window_ends:
                            self._close_window(bar)
                        if core.epoch_ends:
                            self._close_epoch()
                        self._save(now=stopped or core.steps == core.total_steps)
                        if stopped:
                            raise Stopped(f"{self.folder}: stopped after step {core.steps}")
        return self._finish()

    def _bar(self) -> tqdm:
        size = self.core.config.batch_size
        return tqdm(
            total=size * self.core.total_steps, initial=size * self.core.steps, unit="tok", unit_scale=True,
            desc=self.folder.name, disable=not self.chief,
        )  # fmt: skip

    def _close_window(self, bar: tqdm) -> None:
        core = self.core
        core.close_window()
        values = core.window.values()
        bar.set_postfix(loss=f"{values['loss']:.3g}", L0=f"{values['l0']:.3g}", FVU=f"{values['fvu']:.3g}")
        if self.log:
            now = time.perf_counter()
            tokens = (core.steps - self.window_from) * core.config.batch_size
            epoch = (core.steps - 1) // core.steps_per_epoch + 1
            row = {"step": core.steps, "epoch": epoch, "learning_rate": core.optimizer.param_groups[0]["lr"]}
            self.log.window(row | values | {"tokens_per_second": tokens / (now - self.window_began)})
        self.window_from, self.window_began = core.steps, time.perf_counter()
        self.epoch_sums.merge(core.window)
        core.window.reset()

    def _close_epoch(self) -> None:
        core = self.core
        epoch = core.steps // core.steps_per_epoch
        seconds = time.perf_counter() - self.epoch_began
        about = {"epoch": epoch, "step": core.steps}
        row: dict[str, Any] = about | self.epoch_sums.values()
        concepts = [about | {"split": "train"} | one for one in self.epoch_sums.concept_rows(self.cache.concepts)]
        if self.split is not None:
            # Epochs that are compared with each other are measured on the same tokens.
            whole = core.steps == core.total_steps and not core.config.early_stopping
            max_tokens = None if whole else _QUICK_EVALUATION_TOKENS
            measures = core.evaluate(self.cache.split(self.split), max_tokens)
            values, rows = measures.values(), measures.concept_rows(self.cache.concepts)
            row |= {f"{self.split}_{key}": value for key, value in values.items()}
            concepts += [about | {"split": self.split} | one for one in rows]
            if self.log:
                self.log.epoch(core.steps, values, self.split, rows)
        row["tokens_per_second"] = (core.steps - self.epoch_from) * core.config.batch_size / seconds
        self.history.append(row)
        self.concepts += concepts
        if core.config.early_stopping and self._best_epoch() == epoch:
            self.best = self._weights()
        self.epoch_sums.reset()
        self.epoch_from, self.epoch_began = core.steps, time.perf_counter()

    def _evaluation_losses(self) -> list[float]:
        key = f"{self.split}_loss" if self.split is not None else "loss"
        return [row[key] for row in self.history]

    def _best_epoch(self) -> int:
        losses = self._evaluation_losses()
        return losses.index(min(losses)) + 1

    def _has_stopped_early(self) -> bool:
        patience = self.core.config.early_stopping
        return patience > 0 and len(self.history) > patience and len(self.history) - self._best_epoch() >= patience

    def _save(self, *, now: bool) -> None:
        began = time.monotonic()
        due = max(_SECONDS_BETWEEN_SAVES, self.saving_took / _SHARE_OF_SAVING)
        if self.chief and (now or began - self.saved_at > due):
            tensors = self.core.state() | {name: value.cpu() for name, value in self._sums()}
            if self.core.config.early_stopping:
                tensors |= {f"best.{name}": value for name, value in self.best.items()}
            save_resume(self.folder, ResumeState(tensors, self.settings, self.history, self.concepts))
            self.saved_at = time.monotonic()
            self.saving_took = self.saved_at - began

    def _weights(self) -> dict[str, Tensor]:
        if not self.core.config.early_stopping:
            return {}
        return {name: value.cpu().contiguous().clone() for name, value in self.core.sae.state_dict().items()}

    def _sums(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, measures in (("window", self.core.window), ("epoch", self.epoch_sums)):
            for name, value in measures.sums.items():
                yield f"{prefix}.{name}", value

    def _check_finite(self) -> None:
        core = self.core
        if (bad_step := core.first_bad_step()) is None:
            return
        texts = core.text_ids(bad_step)
        if self.chief:
            write_json(self.folder / _FAILURE, {"step": bad_step, "text_ids": texts, "split": "train"})
        state = load_resume(self.folder)
        kept = f"the state after step {int(state.tensors['steps'])} is kept" if state else "nothing was saved before"
        some = ", ".join(str(text) for text in texts[:8]) + (", ..." if len(texts) > 8 else "")
        raise UserError(
            f"{self.folder}: loss or gradient of step {bad_step} is not a finite number (texts {some}; all in"
            f" {_FAILURE}); {kept}; look at these texts' activations or lower lr in the config"
        )

    def _finish(self) -> dict[str, Any]:
        core, metrics = self.core, dict(self.history[-1])
        self._save(now=True)
        if core.config.early_stopping:
            core.sae.load_state_dict(self.best)
            metrics = dict(self.history[self._best_epoch() - 1])
            if self.split is not None:
                values = core.evaluate(self.cache.split(self.split)).values()
                metrics |= {f"{self.split}_{key}": value for key, value in values.items()}
        if self.log:
            self.log.finish(self.history, self.concepts)
            about = {"metrics": metrics, "stopped_early": self._has_stopped_early()}
            save_checkpoint(self.folder, fold(core.sae), self.settings | description(core, self.cache) | about)
        return metrics


def _estimate(core: TrainingCore, folder: Path) -> None:
    """Tell what the run will take; the time it takes shows in the bar after its first steps."""
    n = sum(parameter.numel() for parameter in core.sae.parameters())
    batch = core.reader.batch_size * (2 * core.config.n_inputs + core.config.sae.n_latents) * 4
    logger.info(
        "%s: %.3g million parameters, %s steps of %s tokens; about %.2g GB of memory on %s and %.2g GB of disk",
        folder, n / 1e6, core.total_steps, core.config.batch_size, (16 * n + 3 * batch) / 1e9, core.device.type,
        (4 * n + 2 * 12 * n) / 1e9,
    )  # fmt: skip
