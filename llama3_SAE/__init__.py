"""SAEs for Llama models: run configs, and the model with an SAE attached, which transformers' Auto classes know."""

from transformers import AutoConfig, AutoModelForCausalLM

from llama3_SAE.modeling_llama3_SAE import LLama3_SAE, LLama3_SAE_config

AutoConfig.register(LLama3_SAE_config.model_type, LLama3_SAE_config, exist_ok=True)
AutoModelForCausalLM.register(LLama3_SAE_config, LLama3_SAE, exist_ok=True)

__all__ = ["LLama3_SAE", "LLama3_SAE_config"]
