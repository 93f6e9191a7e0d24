"""Which latent stands for each concept: the one it was tied to, or the one that tells it apart best."""

import numpy as np
from numpy.typing import NDArray

from utils.activation_cache import ActivationSplit
from utils.columns import Columns
from utils.evaluated import Evaluated
from utils.fms_samples import balanced_rows, encode_rows, pool_cached
from utils.latent_blocks import LatentBlocks
from utils.sae import SAE
from utils.trees import Labels, Stumps

MOST_POSITIVES = 5_000  # tokens of a concept that the root is chosen on


def concept_latents(subject: Evaluated, split_name: str, *, tokens: bool, seed: int = 0) -> NDArray[np.int64]:
    """Return one latent for each concept of the cache, -1 where nothing tells it apart.

    Of a guided SAE latent c for concept c; of any other the root, the best single latent by Gini impurity, over the
    means of texts or over single tokens (all of the concept, and as many others).

    Args:
        subject: the SAE and its activations.
        split_name: what roots are chosen on; best another split than the one that is measured.
        tokens: whether labels are those of tokens, not of whole texts.
        seed: of the tokens.
    """
    if subject.loaded.is_guided:
        return np.arange(len(subject.cache.concepts))
    split, sae = subject.cache.split(split_name), subject.loaded.sae
    if tokens:
        return np.array([_tokenroot(sae, split, c, seed) for c in range(split.n_concepts)])
    pooled = pool_cached(sae, split)
    columns = Columns.of(LatentBlocks.of(pooled.means_BN))
    return np.array([root(columns, np.ascontiguousarray(labels_B)) for labels_B in pooled.labels_BC.T])


def _tokenroot(sae: SAE, split: ActivationSplit, concept: int, seed: int) -> int:
    random = np.random.default_rng([seed, concept])
    labels_B = split.label_BC[:, concept]
    rows_B = balanced_rows(labels_B, random)
    if len(rows_B) > 2 * MOST_POSITIVES:
        rows_B = np.sort(random.choice(rows_B, 2 * MOST_POSITIVES, replace=False))
    return root(Columns.of(LatentBlocks.of(encode_rows(sae, split, rows_B))), labels_B[rows_B])


def root(columns: Columns, labels_B: NDArray[np.int8]) -> int:
    """Return the latent that tells two classes apart best, by Gini impurity; -1 where none does."""
    if len(np.unique(labels_B)) < 2:
        return -1
    stumps = Stumps.of(columns, Labels(labels_B))
    best = stumps.best(1)[0]
    return best if stumps.left_N[best] > 0 else -1
