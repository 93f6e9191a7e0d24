"""Leakage: how well a linear probe tells the concepts from the latents that are tied to none."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from utils.activation_cache import ActivationCache, ActivationSplit
from utils.fms_samples import encode_rows, pool_cached
from utils.sae import SAE

MOST_ROWS = 10_000  # of a probe's training, and of its test


def leakage(sae: SAE, cache: ActivationCache, split: str, *, first: int, whole_texts: bool, seed: int = 0) -> float:
    """Return the mean over concepts of the probes' AUROC; 0.5: nothing leaks.

    Args:
        sae: the SAE.
        cache: its activations; probes are trained on the split `train`.
        split: where they are tested.
        first: latents, from 0 on, that the probes do not see: those tied to concepts.
        whole_texts: whether probes see the means of texts, not tokens.
        seed: of the tokens.
    """
    sides = [_samples(sae, cache.split(name), first, whole_texts, seed) for name in ("train", split)]
    scores = []
    for c in range(sides[0][1].shape[1]):
        (train_BN, own_B), (test_BN, true_B) = ((latents_BN, labels_BC[:, c]) for latents_BN, labels_BC in sides)
        if len(np.unique(own_B)) == len(np.unique(true_B)) == 2:
            probe = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=200, tol=1e-3))
            scores.append(roc_auc_score(true_B, probe.fit(train_BN, own_B).decision_function(test_BN)))
    return float(np.mean(scores)) if scores else float("nan")


def _samples(
    sae: SAE, split: ActivationSplit, first: int, whole_texts: bool, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    if whole_texts:
        pooled = pool_cached(sae, split)
        return np.asarray(pooled.means_BN)[:, first:], pooled.labels_BC
    rows_B = np.arange(len(split))
    if len(rows_B) > MOST_ROWS:
        rows_B = np.sort(np.random.default_rng([seed, 10]).choice(rows_B, MOST_ROWS, replace=False))
    with torch.inference_mode():
        return encode_rows(sae, split, rows_B)[:, first:], split.label_BC[rows_B]
