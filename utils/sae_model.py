"""A Hugging Face language model with an SAE attached to one of its hook points.

Nothing happens until a mode is entered: then one hook on the hook point serves all modes that are open, and it is gone
when the last of them is left, even by an exception. Without one, every logit is the stock model's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn

from utils.errors import UserError
from utils.hooks import check_block, check_site, output_tensor, site_module
from utils.models import attention_implementation, quiet_loading
from utils.sae import SAE, SAEConfig
from utils.steering import Strength, check_steering, steering_delta, steers


@dataclass
class Captured:
    """What passed the hook point while `capture` was open, one entry for each forward pass.

    Attributes:
        acts: acts_BTD as the model computed them, before any other mode changed them.
        latents: latents_BTN of these.
    """

    acts: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)


Effect = Callable[[Tensor, Tensor], Tensor]  # (activations as computed, as changed so far) -> changed


class SAEModelMixin:
    """Adds to a causal language model: an SAE, `capture`, `reconstruct` and `steer`.

    The config holds, beside the stock model's keys, `sae` (the fields of `SAEConfig`), `sae_block`, `sae_site`,
    `sae_concepts` and `sae_origin`.
    """

    sae: SAE
    config: Any
    _effects: list[Effect]
    _replaced: bool

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg] # the stock model's
        check_site(config.sae_site)
        check_block(config.sae_block, config.num_hidden_layers)
        sae_config = SAEConfig(**config.sae)
        if sae_config.n_inputs != config.hidden_size:
            raise UserError(
                f"the SAE takes activations {sae_config.n_inputs} wide, but the model's are {config.hidden_size} wide"
            )
        self.sae = SAE(sae_config)
        self._effects = []
        self._replaced = False

    @classmethod
    def attach(
        cls,
        folder: str | Path,
        sae: SAE,
        block: int,
        site: str = "block",
        *,
        concepts: list[str] | None = None,
        origin: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load a stock model and attach an SAE to it.

        Args:
            folder: the model's files, in the Hugging Face layout.
            sae: the SAE.
            block: the decoder block it belongs to, counted from 0.
            site: `block`, `mlp` or `attention`.
            concepts: the concepts of its first latents.
            origin: where it comes from; kept in the config.
            kwargs: for `from_pretrained`, such as `dtype` or `device_map`.

        Raises:
            UserError: a block out of range, an unknown site, or an SAE of another width than the model.
        """
        stock = cls.config_class.__base__.from_pretrained(folder)  # type: ignore[attr-defined]
        values = {key: value for key, value in stock.to_dict().items() if key not in ("model_type", "architectures")}
        values |= {"sae": sae.config.to_dict(), "sae_block": block, "sae_site": site}
        config = cls.config_class(**values, sae_concepts=concepts or [], sae_origin=origin or {})  # type: ignore[attr-defined]
        kwargs.setdefault("attn_implementation", attention_implementation(config))
        with quiet_loading():  # of the SAE's weights, which are not in the folder
            model, info = cls.from_pretrained(  # type: ignore[attr-defined]
                folder, config=config, output_loading_info=True, **kwargs
            )
        if lacking := sorted(key for key in info["missing_keys"] if not key.startswith("sae.")):
            raise UserError(f"{folder}: {len(lacking)} weight(s) missing, such as {lacking[0]}")
        # Out of the reach of accelerate, which may have left these weights on no device at all.
        remove_hook_from_module(model.sae, recurse=True)
        model.sae.load_state_dict({name: tensor.clone() for name, tensor in sae.state_dict().items()}, assign=True)
        model.sae.to(model.dtype)
        return model.eval()

    @contextmanager
    def capture(self) -> Iterator[Captured]:
        """Collect the activations at the hook point, and their latents, of every forward pass inside."""
        captured = Captured()

        def collect(acts_BTD: Tensor, changed_BTD: Tensor) -> Tensor:
            captured.acts.append(acts_BTD)
            captured.latents.append(self._sae_beside(acts_BTD).encode(acts_BTD))
            return changed_BTD

        with self._effect(collect):
            yield captured

    @contextmanager
    def reconstruct(self, *, error_term: bool = False, untouched_BT: Tensor | None = None) -> Iterator[None]:
        """Replace the activations by the SAE's reconstruction.

        Args:
            error_term: add what the reconstruction misses, so that other effects on it can be seen alone.
            untouched_BT: True at positions that keep their activation, such as special tokens, which SAEs never saw.
        """

        def reconstructed(acts_BTD: Tensor) -> Tensor:
            reconstruction_BTD = self._sae_beside(acts_BTD)(acts_BTD).reconstruction_BD
            return reconstruction_BTD + (acts_BTD - reconstruction_BTD) if error_term else reconstruction_BTD

        with self._replacement(reconstructed, untouched_BT):
            yield

    @contextmanager
    def ablate(self, *, untouched_BT: Tensor | None = None) -> Iterator[None]:
        """Replace the activations by zeros: what is lost where nothing of them is handed on."""
        with self._replacement(torch.zeros_like, untouched_BT):
            yield

    @contextmanager
    def _replacement(self, new: Callable[[Tensor], Tensor], untouched_BT: Tensor | None) -> Iterator[None]:
        if self._replaced:
            raise UserError("the activations are replaced already; leave that reconstruct() or ablate() first")

        def replace(acts_BTD: Tensor, changed_BTD: Tensor) -> Tensor:
            new_BTD = new(acts_BTD) + (changed_BTD - acts_BTD)
            if untouched_BT is None:
                return new_BTD
            return torch.where(untouched_BT.to(acts_BTD.device).unsqueeze(-1), changed_BTD, new_BTD)

        with self._effect(replace):
            self._replaced = True
            try:
                yield
            finally:
                self._replaced = False

    @contextmanager
    def steer(self, alphas: Mapping[int, Strength], *, beta: str = "constant") -> Iterator[None]:
        """Add decoder columns to the activations at every position, see `utils.steering.steering_delta`.

        A strength is a number, or one for each row of the batch, so that one batch may hold a whole sweep.

        Steers inside each other add up: each is computed from the activations before any of them. A strength of 0
        changes nothing, bit for bit.

        Raises:
            UserError: a latent out of range, or an unknown beta.
        """
        check_steering(self.sae, alphas, beta)
        effective = {latent: alpha for latent, alpha in alphas.items() if steers(alpha)}
        if not effective:
            yield
            return

        def add(acts_BTD: Tensor, changed_BTD: Tensor) -> Tensor:
            return changed_BTD + steering_delta(acts_BTD, self._sae_beside(acts_BTD), effective, beta)

        with self._effect(add):
            yield

    @contextmanager
    def _effect(self, effect: Effect) -> Iterator[None]:
        """Apply an effect inside; the hook is there while any effect is."""
        module = site_module(self, self.config.sae_block, self.config.sae_site)  # type: ignore[arg-type]
        first = not self._effects
        self._effects.append(effect)
        if first:
            self._handle = module.register_forward_hook(self._change)
        try:
            yield
        finally:
            self._effects.remove(effect)
            if not self._effects:
                self._handle.remove()

    def _change(self, _module: nn.Module, _inputs: Any, output: Any) -> Any:
        acts_BTD = changed_BTD = output_tensor(output)
        with torch.no_grad():
            for effect in self._effects:
                changed_BTD = effect(acts_BTD, changed_BTD)
        if changed_BTD is acts_BTD:
            return None  # the model's own output stays
        return (changed_BTD, *output[1:]) if isinstance(output, tuple) else changed_BTD

    def _sae_beside(self, acts_BTD: Tensor) -> SAE:
        """Return the SAE, on the device and in the dtype of the activations."""
        wanted = (acts_BTD.device, acts_BTD.dtype)
        if any((weight.device, weight.dtype) != wanted for weight in self.sae.parameters()):
            remove_hook_from_module(self.sae, recurse=True)  # accelerate's, which would move the activations instead
            self.sae.to(acts_BTD.device, acts_BTD.dtype)
        return self.sae
