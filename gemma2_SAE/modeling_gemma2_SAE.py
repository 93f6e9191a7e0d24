"""A Gemma-2 with an SAE."""

from typing import Any

from transformers import Gemma2Config, Gemma2ForCausalLM

from utils.sae_model import SAEModelMixin


class Gemma2_SAE_config(Gemma2Config):  # noqa: N801 - the name that users of the released code know
    """A Gemma-2's config with the SAE's: `sae`, `sae_block`, `sae_site`, `sae_concepts`, `sae_origin`."""

    model_type = "gemma2_sae"
    sae: dict[str, Any] | None = None
    sae_block: int = 0
    sae_site: str = "block"
    sae_concepts: list[str] | None = None
    sae_origin: dict[str, Any] | None = None


class Gemma2_SAE(SAEModelMixin, Gemma2ForCausalLM):  # noqa: N801
    """`Gemma2ForCausalLM` with an SAE attached; see `SAEModelMixin` for what it can do."""

    config_class = Gemma2_SAE_config
