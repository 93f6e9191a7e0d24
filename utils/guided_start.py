"""What a guided SAE starts from: its weights, what is erased for the other latents, and the means of texts."""

import numpy as np
import torch
from numpy.typing import NDArray

from utils.activation_cache import ActivationSplit
from utils.concept_init import start_from_regression
from utils.erasure import TEXTS_PER_PART, fit_leace, random_eraser
from utils.sae import SAE
from utils.text_means import TextMeans
from utils.train_config import SAE_Train_config


@torch.no_grad()
def guided_start(
    config: SAE_Train_config, data: ActivationSplit, n_concepts: int, seed: int, device: torch.device
) -> tuple[SAE, TextMeans | None]:
    """Return an SAE to train on a device, and the means of texts where its guidance needs them.

    A vanilla SAE (no concepts) has the same weights, and nothing else of the guided one.

    Args:
        config: see there.
        data: the training tokens.
        n_concepts: latents that are guided, all concepts or none.
        seed: of a random subspace.
        device: where it is to be.
    """
    sae = SAE(config.guided_sae(n_concepts)).to(device)
    if n_concepts == 0:
        return sae, None
    means = TextMeans.of(sae, data) if config.text_loss else None
    if config.concept_init == "logistic":
        start_from_regression(sae, data, means)
    if config.erase == "leace":
        n_parts = min(config.erase_parts, len(np.unique(data.text_id_B)) // TEXTS_PER_PART)
        eraser = fit_leace(sae, data, n_concepts, max(1, n_parts))
        if config.control == "random_erasure":
            eraser = random_eraser(eraser, seed)
        if config.erased_skip:
            started = sae.state_dict()
            sae = SAE(config.guided_sae(n_concepts, eraser.right_RD.shape[0])).to(device)
            sae.load_state_dict(started, strict=False)  # the rest is the skip, which writes nothing yet
            sae.skip_read.copy_(eraser.right_RD)
            sae.skip_offset.copy_(eraser.right_RD @ eraser.mean_D)
        sae.eraser = eraser.to(device)
    return sae, means


def shuffled_labels(data: ActivationSplit, seed: int) -> NDArray[np.int8]:
    """Return the labels in random order: of whole texts where all tokens of each have the same, else of tokens."""
    random = np.random.default_rng([seed, 9])
    label_BC = data.label_BC
    _, first, text_B = np.unique(data.text_id_B, return_index=True, return_inverse=True)
    if np.array_equal(label_BC, label_BC[first][text_B]):
        return label_BC[first][random.permutation(len(first))][text_B]
    return label_BC[random.permutation(len(label_BC))]
