"""Values of the concepts' latents, token by token and text by text, and how well they follow the labels."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from utils.activation_cache import ActivationSplit
from utils.labelled_text import Text
from utils.sae import SAE

_TOKENS = 4_096  # at a time
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BIN_WIDTH = 0.05  # of scores, as in the paper


@dataclass(frozen=True)
class ConceptFeatures:
    """Values of C latents at B tokens.

    Attributes:
        values_BC: after the activation; 0 outside of the TopK.
        pre_BC: before it.
    """

    values_BC: NDArray[np.float32]
    pre_BC: NDArray[np.float32]


@torch.inference_mode()
def concept_features(sae: SAE, split: ActivationSplit, latents_C: NDArray[np.int64]) -> ConceptFeatures:
    """Compute some latents at all tokens; one of number -1 has the value 0, and before the activation NaN."""
    device = sae.pre_bias.device
    values_BC = np.empty((len(split), len(latents_C)), np.float32)
    pre_BC = np.empty_like(values_BC)
    columns_C = torch.from_numpy(latents_C.clip(min=0)).to(device)
    for rows, acts_BD in split.batches(_TOKENS):
        z_BD, _, _ = sae.normalise(torch.from_numpy(acts_BD).to(device))
        pre_BN = sae.pre_activations(z_BD)
        pre_BC[rows] = pre_BN[:, columns_C].cpu().numpy()
        values_BC[rows] = sae.activate(pre_BN)[:, columns_C].cpu().numpy()
    values_BC[:, latents_C < 0], pre_BC[:, latents_C < 0] = 0, np.nan
    return ConceptFeatures(values_BC, pre_BC)


def token_table(split: ActivationSplit, concepts: list[str], features: ConceptFeatures) -> pd.DataFrame:
    """Return one row per token: text_id, position, input_id, and for each concept label, value and pre-activation."""
    rows = np.arange(len(split))
    columns = {name: split.take(name, rows) for name in ("text_id", "position")}
    table = {**columns, "input_id": split.take("input_ids", rows)}
    for c, concept in enumerate(concepts):
        table[f"label {concept}"] = split.label_BC[:, c]
        table[f"value {concept}"] = features.values_BC[:, c]
        table[f"pre {concept}"] = features.pre_BC[:, c]
    return pd.DataFrame(table)


def text_table(tokens: pd.DataFrame, concepts: list[str], texts: list[Text]) -> pd.DataFrame:
    """Return one row per text and concept.

    `label` (1 where any token has the concept), `score` where the texts have one, the means of value and pre-activation
    and the largest value over the text's tokens, and the share of its tokens where the latent is active.
    """
    parts = []
    for concept in concepts:
        own = pd.DataFrame(
            {
                "text_id": tokens["text_id"],
                "label": tokens[f"label {concept}"],
                "value": tokens[f"value {concept}"].astype(np.float64),
                "largest": tokens[f"value {concept}"],
                "pre": tokens[f"pre {concept}"].astype(np.float64),
                "active": tokens[f"value {concept}"] != 0,
            }
        )
        how = {"label": "max", "value": "mean", "largest": "max", "pre": "mean", "active": "mean"}
        by_text = own.groupby("text_id").agg(how).reset_index()
        by_text.insert(1, "concept", concept)
        parts.append(by_text)
    table = pd.concat(parts, ignore_index=True)
    scores = table["text_id"].map(lambda text_id: texts[text_id].score)
    if len(concepts) == 1 and scores.notna().any():  # a score is of the one concept of a data set
        table["score"] = scores.astype(np.float64)
    return table


def summarise(table: pd.DataFrame, unit: str) -> dict[str, float]:
    """Return how the values of one concept follow its labels, over texts or tokens.

    Args:
        table: with `label`, `value`, `pre`, `active`, and perhaps `score`.
        unit: `text` or `token`, the beginning of the names.

    Returns:
        Numbers of samples; AUROC of value and pre-activation; Spearman's correlation with the score, or the label where
        there is none; for each class the share where the latent is active (for texts: at any token), and mean and
        quantiles of the value; NaN where only one class occurs.
    """
    labels = table["label"].to_numpy() > 0
    level = table["score"].to_numpy() if "score" in table else labels.astype(float)
    known = np.isfinite(level)
    measures: dict[str, float] = {"n": len(table), "n_positives": int(labels.sum())}
    for column in ("value", "pre"):
        values = table[column].to_numpy()
        usable = bool(np.isfinite(values).all())
        both = usable and 0 < labels.sum() < len(labels)
        measures[f"auroc_{column}"] = float(roc_auc_score(labels, values)) if both else np.nan
        pair = values[known], level[known]
        varies = usable and known.any() and all(np.ptp(side) > 0 for side in pair)
        measures[f"spearman_{column}"] = float(spearmanr(*pair).statistic) if varies else np.nan
    for label, own in (("positive", table[labels]), ("negative", table[~labels])):
        measures[f"active_{label}"] = float((own["active"] > 0).mean()) if len(own) else np.nan
        measures[f"mean_{label}"] = float(own["value"].mean()) if len(own) else np.nan
        for quantile in QUANTILES:
            measures[f"q{100 * quantile:02.0f}_{label}"] = (
                float(own["value"].quantile(quantile)) if len(own) else np.nan
            )
    return {f"{unit}_{name}": value for name, value in measures.items()}


def calibration(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and quartiles of the value by bins of the score, 0.05 wide.

    Returns:
        Columns `low` (of the bin), `n`, `mean`, `q25`, `q75`; bins without texts are left out, and texts without score.
    """
    table = table[table["score"].notna()]
    n_bins = round(1 / BIN_WIDTH)
    number = (table["score"] / BIN_WIDTH + 1e-9).astype(int).clip(upper=n_bins - 1)
    grouped = table.groupby(number)["value"]
    rows = grouped.agg(n="size", mean="mean", q25=lambda v: v.quantile(0.25), q75=lambda v: v.quantile(0.75))
    rows.insert(0, "low", rows.index * BIN_WIDTH)
    return pd.DataFrame(rows.reset_index(drop=True))
