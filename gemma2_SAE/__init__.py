"""SAEs for Gemma-2 models: run configs, and the model with an SAE attached, which transformers' Auto classes know."""

from transformers import AutoConfig, AutoModelForCausalLM

from gemma2_SAE.modeling_gemma2_SAE import Gemma2_SAE, Gemma2_SAE_config

AutoConfig.register(Gemma2_SAE_config.model_type, Gemma2_SAE_config, exist_ok=True)
AutoModelForCausalLM.register(Gemma2_SAE_config, Gemma2_SAE, exist_ok=True)

__all__ = ["Gemma2_SAE", "Gemma2_SAE_config"]
