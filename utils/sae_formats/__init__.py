"""Readers of the SAE formats in use, one for each library; see `utils.sae_loading`."""
