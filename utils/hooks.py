"""Hook points: which module of a decoder gives the activations of a site, and a forward pass that stops there."""

from typing import Any

from torch import Tensor, nn

from utils.errors import UserError

SITES = ("block", "mlp", "attention")


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks of a Hugging Face decoder, with or without its language-model head.

    Raises:
        UserError: the architecture keeps its blocks elsewhere.
    """
    inner = getattr(model, "model", model)
    blocks = getattr(inner, "layers", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserError(
            f"{type(model).__name__}: no decoder blocks at .layers; Llama- and Gemma-like models are supported"
        )
    return blocks


def site_module(model: nn.Module, block: int, site: str) -> nn.Module:
    """Return the module whose output is the activation: the block itself, its feed-forward or its attention module.

    Raises:
        UserError: an unknown site, or a block out of range.
    """
    check_site(site)
    blocks = decoder_blocks(model)
    check_block(block, len(blocks))
    chosen = blocks[block]
    if site == "mlp":
        return chosen.mlp  # type: ignore[return-value]
    if site == "attention":
        return chosen.self_attn  # type: ignore[return-value]
    return chosen


def check_site(site: str) -> None:
    """Raise UserError for an unknown site."""
    if site not in SITES:
        raise UserError(f"unknown site {site!r}: choose one of {', '.join(SITES)}")


def check_block(block: int, n_blocks: int) -> None:
    """Raise UserError for a block that the model does not have."""
    if not 0 <= block < n_blocks:
        raise UserError(f"block {block} is out of range: the model has blocks 0 to {n_blocks - 1}")


def output_tensor(output: Any) -> Tensor:
    """Return the hidden states of a module's output: itself, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple) else output


class _Reached(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass at the hook point."""


def activations_at(module: nn.Module, model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Run `model` as far as `module` and return that module's output, acts_BTD. The hook is gone afterwards.

    Nothing beyond the module is computed. Positions are counted from each sequence's first unmasked token, so left and
    right padding give the same activations.
    """
    reached: list[Tensor] = []

    def keep_and_stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        reached.append(output_tensor(output))
        raise _Reached

    position_ids_BT = (attention_mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    handle = module.register_forward_hook(keep_and_stop)
    try:
        model(
            input_ids=input_ids_BT,
            attention_mask=attention_mask_BT,
            position_ids=position_ids_BT,
            use_cache=False,
        )
    except _Reached:
        pass
    finally:
        handle.remove()
    return reached[0]
