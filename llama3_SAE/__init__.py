"""SAEs for Llama models (Llama-3, SmolLM2): their run configs."""
