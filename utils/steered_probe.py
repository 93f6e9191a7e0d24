"""What steering by a concept's latent does further on: a linear probe for the concept on the last block's output."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils.labelled_text import Text
from utils.rivals.states import last_states

STRENGTH = 0.05


def steered_probe(
    model: Any, tokenizer: Any, latent: int, train: Sequence[Text], test: Sequence[Text], strength: float = STRENGTH
) -> dict[str, float]:
    """Train a probe on unsteered states at the last token of texts, and ask it about other texts, steered and not.

    Args:
        model: with the SAE attached.
        tokenizer: the model's.
        latent: the concept's.
        train: labelled texts for the probe.
        test: other texts.
        strength: alpha, of both signs.

    Returns:
        `probe_auroc` unsteered; `probe_steered`: the mean probability of the concept steered towards it less that
        steered away.
    """
    labels_B = np.array([bool(text.spans) for text in train])
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    probe.fit(_states(model, tokenizer, train), labels_B)
    found = {}
    for alpha in (-strength, 0.0, strength):
        with model.steer({latent: alpha}, beta="constant"):
            found[alpha] = probe.predict_proba(_states(model, tokenizer, test))[:, 1]
    true_B = np.array([bool(text.spans) for text in test])
    auroc = roc_auc_score(true_B, found[0.0]) if len(np.unique(true_B)) == 2 else float("nan")
    return {
        "probe_auroc": float(auroc),
        "probe_steered": float(found[strength].mean() - found[-strength].mean()),
    }


def _states(model: Any, tokenizer: Any, texts: Sequence[Text]) -> np.ndarray:
    states: np.ndarray = last_states(model, tokenizer, [text.text for text in texts])[:, -1].numpy()
    return states
