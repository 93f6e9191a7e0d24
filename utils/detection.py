"""Which personal data each token is: told by latents, by linear probes and by presidio (paper, section 4.1)."""

from typing import Any

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score
from sklearn.metrics import precision_recall_fscore_support as precision_recall
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from utils.activation_cache import ActivationSplit
from utils.errors import UserError
from utils.labelled_text import Text
from utils.presidio import Presidio
from utils.sae import SAE
from utils.tokens import label_tokens

Classes = NDArray[np.int64]  # the concept of each token, C for none ("O")
_TOKENS = 4_096  # at a time
UNKNOWN_TYPE = -1  # personal data of a type that is none of the concepts
_ITERATIONS = 200


def true_classes(label_BC: NDArray[np.int8]) -> Classes:
    """Return the class of each token: its first concept, C where it has none.

    Raises:
        UserError: no concepts.
    """
    if label_BC.shape[1] == 0:
        raise UserError("the data set has no concepts to detect")
    return np.where(label_BC.any(axis=1), label_BC.argmax(axis=1), label_BC.shape[1])


def classes_of_latents(values_BC: NDArray[np.float32]) -> Classes:
    """Return the concept whose latent is largest among those that are not 0, C where all are (paper, section 4.1)."""
    active_BC = values_BC != 0
    largest_B = np.where(active_BC, values_BC, -np.inf).argmax(axis=1)
    return np.where(active_BC.any(axis=1), largest_B, values_BC.shape[1])


def probe_activations(train: ActivationSplit, test: ActivationSplit, most_tokens: int, seed: int) -> Classes:
    """Classify tokens by a linear probe on their standardised activations."""
    rows_B = _training_rows(train, most_tokens, seed)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=_ITERATIONS, tol=1e-3))
    probe.fit(train.acts(rows_B), true_classes(train.label_BC[rows_B]))
    return np.concatenate([probe.predict(acts_BD) for _, acts_BD in test.batches(_TOKENS)]).astype(np.int64)


def probe_latents(sae: SAE, train: ActivationSplit, test: ActivationSplit, most_tokens: int, seed: int) -> Classes:
    """Classify tokens by a linear probe on all latents, which are kept sparse."""
    rows_B = _training_rows(train, most_tokens, seed)
    parts = [
        _sparse_latents(sae, train.acts(rows_B[start : start + _TOKENS])) for start in range(0, len(rows_B), _TOKENS)
    ]
    probe = LogisticRegression(max_iter=_ITERATIONS, tol=1e-3)
    probe.fit(scipy.sparse.vstack(parts).tocsr(), true_classes(train.label_BC[rows_B]))
    predicted = [probe.predict(_sparse_latents(sae, acts_BD)) for _, acts_BD in test.batches(_TOKENS)]
    return np.concatenate(predicted).astype(np.int64)


@torch.inference_mode()
def _sparse_latents(sae: SAE, acts_BD: NDArray[np.float32]) -> Any:
    latents_BN = sae.encode(torch.from_numpy(acts_BD).to(sae.pre_bias.device))
    return scipy.sparse.csr_array(latents_BN.cpu().numpy())


def _training_rows(train: ActivationSplit, most_tokens: int, seed: int) -> NDArray[np.int64]:
    rows_B = np.arange(len(train))
    if len(train) > most_tokens:
        rows_B = np.sort(np.random.default_rng([seed, 4]).choice(rows_B, most_tokens, replace=False))
    if len(np.unique(true_classes(train.label_BC[rows_B]))) < 2:
        what = f"all of {len(rows_B)} tokens have the same label"
        raise UserError(f"split {train.name!r}: {what}, no probe can be trained; raise --max-tokens or --no-probes")
    return rows_B


def classes_of_presidio(
    presidio: Presidio, split: ActivationSplit, texts: list[Text], tokenizer: Any, concepts: list[str]
) -> Classes:
    """Classify tokens by the spans that presidio finds, the surest of several; `UNKNOWN_TYPE` for other types."""
    columns = {concept: c for c, concept in enumerate([*concepts, "?"])}
    positions = split.take("position", np.arange(len(split)))
    found_B = np.full(len(split), len(concepts), np.int64)
    for text_id in tqdm(np.unique(split.text_id_B).tolist(), unit="text", desc="presidio", delay=5):
        text = texts[text_id].text
        rows = np.flatnonzero(split.text_id_B == text_id)
        offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        own = np.full(len(offsets), len(concepts), np.int64)
        for span in presidio.spans(text):
            inside_T = label_tokens(text, (span,), offsets, {span.concept: 0})[:, 0] > 0
            column = columns.get(span.concept, columns["?"])
            own[inside_T] = column if column < len(concepts) else UNKNOWN_TYPE
        found_B[rows] = own[positions[rows]]
    return found_B


def detection_measures(true_B: Classes, found_B: Classes, concepts: list[str]) -> dict[str, dict[str, float]]:
    """Return how well the classes of tokens were found.

    Args:
        true_B: see `true_classes`.
        found_B: as many.
        concepts: the classes without O.

    Returns:
        Measures by class: F1, precision, recall and number of tokens of each concept; and over `all`: as in the paper
        over concepts and O together F1 (micro, which is the accuracy; macro over the classes that occur), accuracy and
        balanced accuracy; `_concepts`: F1 without O, where a false alarm of any kind counts against micro; `any_`:
        whether a token is personal data at all, of whatever kind.
    """
    n_concepts = len(concepts)
    found_any = found_B != n_concepts
    typed_B = np.where(found_B == UNKNOWN_TYPE, n_concepts, found_B)  # of the kinds asked for it is none
    present = np.unique(true_B)
    kinds, every = present[present < n_concepts], np.arange(n_concepts)
    overall = {
        "f1_micro": f1_score(true_B, typed_B, average="micro", zero_division=0),
        "f1_macro": f1_score(true_B, typed_B, labels=present, average="macro", zero_division=0),
        "f1_micro_concepts": f1_score(true_B, typed_B, labels=every, average="micro", zero_division=0),
        "f1_macro_concepts": f1_score(true_B, typed_B, labels=kinds, average="macro", zero_division=0),
        "accuracy": accuracy_score(true_B, typed_B),
        "balanced_accuracy": recall_score(true_B, typed_B, labels=present, average="macro", zero_division=0),
    }
    precision, recall, f1, _ = precision_recall(
        true_B != n_concepts, found_any, average="binary", pos_label=True, zero_division=0
    )
    overall |= {"any_precision": precision, "any_recall": recall, "any_f1": f1}
    by_class = {"all": {name: float(value) for name, value in overall.items()}}
    columns = precision_recall(true_B, typed_B, labels=kinds, zero_division=0)
    for kind, *values in zip(kinds.tolist(), *columns, strict=True):
        names = ("precision", "recall", "f1", "n_tokens")
        by_class[concepts[kind]] = {name: float(value) for name, value in zip(names, values, strict=True)}
    return by_class


def confusion(true_B: Classes, found_B: Classes, n_concepts: int) -> NDArray[np.int64]:
    """Return counts [true, found] of the concepts and O; other types count as O."""
    typed_B = np.where(found_B == UNKNOWN_TYPE, n_concepts, found_B)
    return np.asarray(confusion_matrix(true_B, typed_B, labels=np.arange(n_concepts + 1)))
