"""SAEs for Gemma-2 models: their run configs."""
