"""Train an SAE as a Determined trial, on a cluster or, for a try, off it: the same core as train_SAE.py.

    det experiment create train/train_SAE_24k_k2048.yaml .      # on a cluster
    python train/determined_trial.py CONFIG.json                # off it, into Determined's local storage

Hyperparameters: `config_path` (a run config), `cond_loss_scaling` (0: vanilla, s > 0: guided) and `seed`. Every
checkpoint folder is, besides Determined's own files, a checkpoint of ours, and loads as one; the finished SAE is also
written to ckpt/<config>_s<scaling>/, as by train_SAE.py.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import determined as det
from determined import pytorch
from torch.utils.data import DataLoader

from utils.activation_cache import ActivationCache
from utils.activation_reader import Batch
from utils.checkpoint import has_checkpoint, read_checkpoint_config, save_checkpoint
from utils.cli import Parser, non_negative_float, run, seed
from utils.erasure import fold
from utils.errors import UserError
from utils.measures import Measures
from utils.run_settings import check_same, description, run_settings
from utils.sae_formats.released import numpy_random_state
from utils.train_config import SAE_Train_config, check_against_cache, load_train_config
from utils.training_core import TrainingCore

EXAMPLES = """\
examples:
  det experiment create train/train_SAE_24k_k2048.yaml .
  python train/determined_trial.py llama3_SAE/SAE_config/smollm2-l1728-b15-k144-SP.json

On a cluster the hyperparameters come from the experiment; off it, from this command line.
"""
VALIDATION_EPOCHS, CHECKPOINT_EPOCHS = 5, 10
_REPORT_STEPS = 100


class SAETrial(pytorch.PyTorchTrial):
    """Hands Determined's batches, gradients and metrics to and from a `TrainingCore`."""

    def __init__(
        self,
        context: pytorch.PyTorchTrialContext,
        name: str,
        config: SAE_Train_config,
        cache: ActivationCache,
        cond_loss_scaling: float,
        seed: int,
    ) -> None:
        self.context, self.cache = context, cache
        self.settings = run_settings(config, cache, cond_loss_scaling, seed)
        self.core = TrainingCore(
            config, cache, cond_loss_scaling, seed, device=context.device,
            rank=context.distributed.rank, world_size=context.distributed.size,
        )  # fmt: skip
        self.core.module = context.wrap_model(self.core.objective)
        self.core.optimizer = context.wrap_optimizer(self.core.optimizer)
        context.experimental.disable_dataset_reproducibility_checks()  # our reader goes on where it was by itself
        context.experimental.disable_auto_to_device()  # and brings batches to the device
        self.reported = self.core.window.empty()
        context.wrap_reducer(_Reported(self.reported), for_training=True, for_validation=False)
        self.metrics: dict[str, float] = {}
        self.metrics_step = -1
        out = Path(config.ckpt_path or "ckpt")
        self.folder = out / f"{name}_s{cond_loss_scaling:g}"
        if has_checkpoint(self.folder):
            check_same(self.folder, read_checkpoint_config(self.folder), self.settings)

    def build_training_data_loader(self) -> Any:
        """Return the core's batches, endlessly; Determined counts epochs by their length."""
        return _EndlessBatches(self.core)

    def build_validation_data_loader(self) -> DataLoader:
        """Return one token item, as the core reads the evaluation split itself, shared by the processes."""
        return DataLoader([0])  # type: ignore[arg-type]

    def get_batch_length(self, batch: Any) -> int:
        """Return the tokens of a batch in this process."""
        return len(batch.rows_B) if isinstance(batch, Batch) else 1

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
        """Make a step; all that is on the device goes through the reducer, as returning it would wait."""
        core = self.core
        core.step(batch, backward=self.context.backward, update=self._update)
        if core.window_ends:
            if (bad_step := core.first_bad_step()) is not None:
                # Not InvalidHP, with which Determined would save the spoilt weights as the newest checkpoint.
                raise UserError(
                    f"loss or gradient of step {bad_step} is not a finite number; its tokens are from the texts"
                    f" {core.text_ids(bad_step)}; look at their activations or lower lr in the config"
                )
            core.close_window()
            self.reported.merge(core.window)
            core.window.reset()
        return {"learning_rate": core.optimizer.param_groups[0]["lr"]}  # with several slots, there must be something

    def _update(self, core: TrainingCore) -> None:
        self.context.step_optimizer(core.optimizer, clip_grads=lambda _: core.clip())

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Measure the SAE on the whole evaluation split, or on the training split where there is none."""
        measures = self.core.evaluate(self.cache.split(self.cache.evaluation_split() or "train"))
        values = measures.values()
        self.metrics, self.metrics_step = {"validation_loss": values["loss"]} | values, self.core.steps
        concepts = measures.concept_rows(self.cache.concepts)
        return self.metrics | {f"auroc_{row['concept']}": row["auroc"] for row in concepts}

    def build_callbacks(self) -> dict[str, pytorch.PyTorchCallback]:
        """Return what keeps the core's state in Determined's checkpoints."""
        return {"core": _CoreState(self)}


class _EndlessBatches:
    def __init__(self, core: TrainingCore) -> None:
        self.core = core

    def __len__(self) -> int:
        return self.core.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield from self.core.batches()


class _Reported(pytorch.MetricReducer):
    """The means over the tokens since the last report; the core has added up the processes already."""

    def __init__(self, measures: Measures) -> None:
        self.measures = measures

    def reset(self) -> None:
        self.measures.reset()

    def per_slot_reduce(self) -> dict[str, float]:
        return self.measures.values()

    def cross_slot_reduce(self, per_slot_metrics: list[dict[str, float]]) -> dict[str, float]:
        return per_slot_metrics[0]


class _CoreState(pytorch.PyTorchCallback):
    """What the core knows beside weights and moments; and our own checkpoint in each of Determined's."""

    def __init__(self, trial: SAETrial) -> None:
        self.trial = trial
        self.first_step = 0

    def on_trial_startup(self, first_batch_idx: int, checkpoint_uuid: str | None) -> None:
        self.first_step = first_batch_idx

    def state_dict(self) -> dict[str, Any]:
        return self.trial.core.counters()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.trial.core.restore_counters(state_dict)
        info = det.get_cluster_info()
        if info is not None and self.first_step == 0:  # a new trial that starts from another's weights
            self.trial.core.steps = 0

    def on_checkpoint_write_end(self, checkpoint_dir: str) -> None:
        trial, core = self.trial, self.trial.core
        metrics = trial.metrics if trial.metrics_step == core.steps else {}
        about = trial.settings | description(core, trial.cache) | {"metrics": metrics}
        save_checkpoint(Path(checkpoint_dir), fold(core.sae), about)
        if core.steps == core.total_steps:
            save_checkpoint(trial.folder, fold(core.sae), about)


def main(argv: Sequence[str] | None = None) -> None:
    """Train with the experiment's hyperparameters on a cluster, with the command line's off it."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("config", metavar="CONFIG.json", nargs="?", help="the run config; only off the cluster")
    parser.add_argument("--cond-loss-scaling", type=non_negative_float, default=1.0, help="only off the cluster")
    parser.add_argument("--seed", type=seed, default=0, help="only off the cluster")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format=det.LOG_FORMAT, force=True)
    info = det.get_cluster_info()
    if info is None and args.config is None:
        raise UserError("CONFIG.json: needed off the cluster (see --help)")
    hparams = (
        {"config_path": args.config, "cond_loss_scaling": args.cond_loss_scaling, "seed": args.seed}
        if info is None
        else info.trial.hparams
    )
    train(hparams, info.latest_checkpoint if info else None)


def train(
    hparams: dict[str, Any],
    latest_checkpoint: str | None = None,
    distributed: "det.core.DistributedContext | None" = None,
) -> SAETrial:
    """Train a trial to its end, or until the cluster asks it to stop.

    Args:
        hparams: `config_path`, `cond_loss_scaling` and, where it is not 0, `seed`.
        latest_checkpoint: to go on from.
        distributed: the other processes, off a cluster; on one, Determined finds them.

    Raises:
        UserError: missing hyperparameters, or whatever is wrong with config and cache.
    """
    if missing := {"config_path", "cond_loss_scaling"} - hparams.keys():
        raise UserError(f"hyperparameters: missing {', '.join(sorted(missing))}")
    path = Path(hparams["config_path"])
    config = load_train_config(path)
    if config.pretrained:
        raise UserError(f"{path}: a pretrained SAE, not to be trained")
    if config.early_stopping:
        raise UserError(f"{path}: early_stopping is not for a cluster, which keeps the best checkpoint anyway")
    cache = ActivationCache(config.ds_path)
    check_against_cache(path, config, cache)
    experiment = {"name": path.stem, "hyperparameters": hparams}  # on a cluster, the master's is taken
    with (
        pytorch.init(hparams=hparams, exp_conf=experiment, distributed=distributed) as context,
        numpy_random_state(),
    ):
        trial = SAETrial(
            context, path.stem, config, cache, float(hparams["cond_loss_scaling"]), int(hparams.get("seed", 0))
        )
        pytorch.Trainer(trial, context).fit(
            max_length=pytorch.Epoch(config.max_epochs),
            validation_period=pytorch.Epoch(VALIDATION_EPOCHS),
            checkpoint_period=pytorch.Epoch(CHECKPOINT_EPOCHS),
            reporting_period=pytorch.Batch(_REPORT_STEPS),
            checkpoint_policy="all",  # "best" is the experiment's, not the trial's; the cluster keeps each trial's best
            latest_checkpoint=latest_checkpoint,
        )
    return trial


if __name__ == "__main__":
    run(main)
