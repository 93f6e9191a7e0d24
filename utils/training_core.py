"""One core of training for every driver: a step, an evaluation, and all that is to be saved and restored."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from utils.activation_cache import ActivationCache, ActivationSplit
from utils.activation_reader import ActivationReader, Batch
from utils.decorrelation import Decorrelation
from utils.errors import UserError
from utils.guided_start import guided_start, shuffled_labels
from utils.measures import Measures
from utils.models import default_device
from utils.objective import Objective, StepResult
from utils.sae_quality import measure
from utils.schedule import learning_rate
from utils.train_config import SAE_Train_config

CLIP_NORM = 1.0
_STEPS_PER_WINDOW = 20  # of the logs; only then the host waits for the device
_NEVER = torch.iinfo(torch.int64).max


class TrainingCore:
    """An SAE, its optimizer, its data and what is measured of them.

    Drivers wrap the objective (DistributedDataParallel, or Determined's context) and may replace how a loss is
    propagated and an update made; what is computed is here alone. The batch of a step is shared by the processes, so
    that their number does not change what is learnt.

    Args:
        config: what to train.
        cache: the activations, with a train split.
        cond_loss_scaling: 0 leaves the concept loss away (a vanilla SAE); s > 0 weights positive labels by s.
        seed: of the initial weights and the order of the tokens.
        device: where the SAE is.
        rank: this process, of `world_size`.
        world_size: how many processes train together.

    Attributes:
        steps: updates made so far.
        window: what was measured of the training since somebody reset it.
    """

    def __init__(
        self,
        config: SAE_Train_config,
        cache: ActivationCache,
        cond_loss_scaling: float,
        seed: int,
        device: torch.device | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(config, cache, cond_loss_scaling, world_size)
        self.config, self.cond_loss_scaling, self.seed = config, cond_loss_scaling, seed
        self.rank, self.world_size = rank, world_size
        self.device = device or default_device()
        self.data = cache.split("train")
        if config.control == "shuffled_labels":
            self.data = self.data.with_labels(shuffled_labels(self.data, seed))
        self.reader = ActivationReader(
            self.data, config.batch_size // world_size, seed, device=self.device, rank=rank, world_size=world_size
        )
        n_concepts = self.data.n_concepts if cond_loss_scaling > 0 else 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.sae, self.means = guided_start(config, self.data, n_concepts, seed, self.device)
        if config.unit_norm_decoder:
            self._normalise_decoder()
        self.decorrelation = None
        if config.decorrelate and n_concepts:
            label_mean_C = torch.from_numpy(self.data.label_BC.mean(axis=0, dtype=np.float64)).float().to(self.device)
            self.decorrelation = Decorrelation(config.sae.n_latents, label_mean_C)
        self.objective = Objective(self.sae, config, cond_loss_scaling, self.decorrelation)
        if config.compile:
            self.objective.compile(backend=config.compile)
        self.module: nn.Module = self.objective  # or a wrapper of it
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=config.lr, fused=True)
        self.steps = 0
        self.window = Measures(config.n_inputs, config.sae.n_latents, n_concepts, self.device)
        self._silent_tokens_N = torch.zeros(config.sae.n_latents, dtype=torch.int64, device=self.device)
        self._dead = torch.empty(0, dtype=torch.int64, device=self.device)
        self._first_bad_step = torch.tensor(_NEVER, device=self.device)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training split."""
        return len(self.reader)

    @property
    def epoch_ends(self) -> bool:
        """Whether the newest step was the last of its epoch."""
        return self.steps % self.steps_per_epoch == 0

    @property
    def window_ends(self) -> bool:
        """Whether it is time to look at what was measured, and to call `close_window`, after the newest step."""
        return self.steps % _STEPS_PER_WINDOW == 0 or self.epoch_ends

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.steps_per_epoch * self.config.max_epochs

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that are left of the current epoch."""
        epoch, step = divmod(self.steps, self.steps_per_epoch)
        return self.reader.epoch(epoch, step)

    def learning_rate(self) -> float:
        """Return the next step's learning rate."""
        config = self.config
        return learning_rate(
            self.steps, self.total_steps, peak=config.lr, warmup_steps=config.warmup_steps, decay=config.lr_decay
        )

    def step(
        self,
        batch: Batch,
        backward: Callable[[Tensor], None] = Tensor.backward,
        update: "Callable[[TrainingCore], None] | None" = None,
    ) -> None:
        """Update the SAE on one batch (paper: L = mean of L_r + L_c, clip at 1.0, Adam).

        Args:
            batch: this process's tokens.
            backward: how gradients are computed from a loss.
            update: calls `clip` and steps the optimizer; by default just that.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        parts = self.config.accumulation_steps
        loss, moments_NM = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        means = [None] * parts if self.means is None else self.means.at(batch.rows_B).chunk(parts)
        chunks = zip(batch.acts_BD.chunk(parts), batch.labels_BC.chunk(parts), means, strict=True)
        for part, (acts_BD, labels_BC, means_BD) in enumerate(chunks):
            exchange_later = getattr(self.module, "no_sync", nullcontext) if part < parts - 1 else nullcontext
            with exchange_later():
                result: StepResult = self.module(
                    acts_BD, labels_BC, self._dead if self.config.aux_k else None, means_BD
                )
                backward(result.loss / parts)
            loss += result.loss.detach() / parts
            if result.moments_NM is not None:
                moments_NM = moments_NM + result.moments_NM / parts
            self.window.add(acts_BD, labels_BC, result)
        if self.decorrelation is not None:
            if self.world_size > 1:
                torch.distributed.all_reduce(moments_NM)
            self.decorrelation.update(moments_NM / self.world_size)
        grad_norm = self._grad_norm()
        with self._shorter_concept_steps():
            (update or TrainingCore._update)(self)
        if self.config.unit_norm_decoder:
            self._normalise_decoder()
        self.steps += 1
        self.window.add_step(grad_norm)
        fine = loss.isfinite() & grad_norm.isfinite()
        bad_step = torch.where(fine, self._first_bad_step, self.steps)
        self._first_bad_step = torch.minimum(self._first_bad_step, bad_step)

    def _grad_norm(self) -> Tensor:
        if self.config.unit_norm_decoder:
            self._drop_radial_gradient()
        self._norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self.sae.parameters() if parameter.grad is not None]
        )
        return self._norm

    def clip(self) -> None:
        """Scale all gradients of a step such that their norm is at most 1.0."""
        torch.nn.utils.clip_grads_with_norm_(self.sae.parameters(), CLIP_NORM, self._norm)

    def _update(self) -> None:
        self.clip()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def _shorter_concept_steps(self) -> Iterator[None]:
        """Let the concepts' encoder rows and biases go only a share of the way; Adam itself knows no scale."""
        share = self.config.concept_lr
        if share == 1 or self.cond_loss_scaling == 0:
            yield
            return
        rows = [
            parameter.detach()[: self.data.n_concepts] for parameter in (self.sae.encoder.weight, self.sae.latent_bias)
        ]
        before = [row.clone() for row in rows]
        yield
        for row, old in zip(rows, before, strict=True):
            row.lerp_(old, 1 - share)

    @torch.no_grad()
    def _drop_radial_gradient(self) -> None:
        """Leave of the decoder's gradient what turns the columns, as their lengths are fixed."""
        weight_DN = self.sae.decoder.weight
        if weight_DN.grad is not None:
            weight_DN.grad -= weight_DN * (weight_DN * weight_DN.grad).sum(dim=0)

    @torch.no_grad()
    def _normalise_decoder(self) -> None:
        weight_DN = self.sae.decoder.weight
        weight_DN /= weight_DN.norm(dim=0)

    def close_window(self) -> None:
        """Add up the window over all processes, and note which latents are dead."""
        self.window.reduce()
        if self.config.aux_k:
            tokens = self.window.sums["tokens"].long()
            self._silent_tokens_N = torch.where(self.window.sums["fired_N"] > 0, 0, self._silent_tokens_N + tokens)
            self._find_dead()

    def first_bad_step(self) -> int | None:
        """Return the first step (from 1) whose loss or gradient was not a finite number, None where all were.

        This waits for the device, and for the other processes, which must ask, too.
        """
        if self.world_size > 1:
            torch.distributed.all_reduce(self._first_bad_step, torch.distributed.ReduceOp.MIN)
        first = int(self._first_bad_step)
        return first if first != _NEVER else None

    def _find_dead(self) -> None:
        silent_N = self._silent_tokens_N >= self.config.dead_after_tokens
        if self.cond_loss_scaling > 0:
            silent_N[: self.data.n_concepts] = False  # these have their own loss
        self._dead = silent_N.nonzero().flatten()

    def text_ids(self, step: int) -> list[int]:
        """Return the texts, by their index in the split, whose tokens were in a step (from 1), in all processes."""
        rows = self.reader.all_rows(*divmod(step - 1, self.steps_per_epoch))
        return sorted(set(self.data.take("text_id", rows).tolist()))

    def evaluate(self, data: ActivationSplit, max_tokens: int | None = None) -> Measures:
        """Measure the SAE on a split, or on evenly spaced tokens of it, together with the other processes."""
        return measure(
            self.sae,
            data,
            self.reader.batch_size,
            max_tokens,
            guided=self.cond_loss_scaling > 0,
            rank=self.rank,
            world_size=self.world_size,
        )

    def counters(self) -> dict[str, Tensor]:
        """Return what is to be saved beside weights and moments."""
        counters = {"silent_tokens_N": self._silent_tokens_N, "steps": torch.tensor(self.steps)}
        return counters | ({"moments_NM": self.decorrelation.moments_NM} if self.decorrelation is not None else {})

    def restore_counters(self, tensors: dict[str, Tensor]) -> None:
        """Go back to saved counters."""
        self.steps = int(tensors["steps"])
        self._silent_tokens_N.copy_(tensors["silent_tokens_N"])
        if self.decorrelation is not None:
            self.decorrelation.moments_NM.copy_(tensors["moments_NM"])
        self._find_dead()

    def state(self) -> dict[str, Tensor]:
        """Return all that training goes on from, on the CPU: the weights under their names, Adam's moments ..."""
        tensors = self.counters()
        for name, parameter in self.sae.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to a saved state."""
        self.restore_counters(tensors)
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            state = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if (saved := tensors.get(f"{key}.{name}")) is not None:
                    # The fused Adam goes through memory: moments must lie as the weights do.
                    state[key] = torch.empty_like(parameter if saved.ndim else saved, device=self.device).copy_(saved)
            self.optimizer.state[parameter] = state


def _check(config: SAE_Train_config, cache: ActivationCache, cond_loss_scaling: float, world_size: int) -> None:
    if cond_loss_scaling > 0 and not cache.concepts:
        raise UserError(f"{cache.folder} has no labels to guide by; use --cond-loss-scaling 0")
    if cond_loss_scaling > 0 and len(cache.concepts) > config.sae.n_latents:
        raise UserError(f"{len(cache.concepts)} concepts need as many latents, but there are {config.sae.n_latents}")
    if config.batch_size % (world_size * config.accumulation_steps):
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared evenly by {world_size} processes"
            f" with accumulation_steps {config.accumulation_steps}"
        )
