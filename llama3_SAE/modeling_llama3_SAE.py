"""A Llama with an SAE."""

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from utils.sae_model import SAEModelMixin


class LLama3_SAE_config(LlamaConfig):  # noqa: N801 - the name that users of the released code know
    """A Llama's config with the SAE's: `sae`, `sae_block`, `sae_site`, `sae_concepts`, `sae_origin`."""

    model_type = "llama3_sae"
    sae: dict[str, Any] | None = None
    sae_block: int = 0
    sae_site: str = "block"
    sae_concepts: list[str] | None = None
    sae_origin: dict[str, Any] | None = None


class LLama3_SAE(SAEModelMixin, LlamaForCausalLM):  # noqa: N801
    """`LlamaForCausalLM` with an SAE attached; see `SAEModelMixin` for what it can do."""

    config_class = LLama3_SAE_config
