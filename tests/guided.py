"""What the tests of guidance beyond the paper's share."""

import numpy as np
import pytest
import torch

from utils.activation_cache import ActivationCache
from utils.caching import cache_activations
from utils.sae import SAE, SAEConfig
from utils.train_config import SAE_Train_config

ALL = {
    "erase": "leace", "concept_gate": "threshold", "concept_init": "logistic", "concept_lr": 0.1, "text_loss": True,
    "decorrelate": 0.1,
}  # fmt: skip


@pytest.fixture
def labelled_cache(two_concepts, tiny_llama, tmp_path):
    return ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path / "data"))


@pytest.fixture
def labelled_config(labelled_cache):
    return SAE_Train_config(
        batch_size=32, ds_path=str(labelled_cache.folder), factor=4, k=8, lr=1e-3, max_epochs=2, n_inputs=32,
        activation="topk-sigmoid",
    )  # fmt: skip


def normalised(split):
    acts_BD = torch.from_numpy(split.acts(np.arange(len(split)))).double()
    return SAE(SAEConfig(32, 64, 8)).double().normalise(acts_BD)[0]
