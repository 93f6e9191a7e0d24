"""A page that shows texts coloured by a latent's value: one file, which works offline and runs nothing of the data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from utils.atomic import atomic_file
from utils.labelled_text import Text

_TEMPLATE = Path(__file__).with_name("token_view.html")


@dataclass(frozen=True)
class ViewedSAE:
    """What is shown of one SAE.

    Attributes:
        name: how it is called.
        latents_C: the latent of each concept, or -1.
        tokens: see `utils.concept_features.token_table`.
    """

    name: str
    latents_C: NDArray[np.int64]
    tokens: pd.DataFrame


def write_token_view(
    path: Path,
    title: str,
    saes: list[ViewedSAE],
    concepts: list[str],
    texts: list[Text],
    text_ids: list[int],
    tokenizer: Any,
) -> None:
    """Write the page.

    Args:
        path: where to.
        title: its heading.
        saes: measured on the same tokens.
        concepts: in the order of the latents.
        texts: of the split.
        text_ids: which of them are shown.
        tokenizer: a fast one, for its character offsets.
    """
    groups = [dict(list(sae.tokens[sae.tokens["text_id"].isin(text_ids)].groupby("text_id"))) for sae in saes]
    text_ids = [text_id for text_id in text_ids if text_id in groups[0]]
    shown = [_text(texts[i], i, groups[0][i], concepts, tokenizer) for i in text_ids]
    viewed = []
    for sae, of_text in zip(saes, groups, strict=True):
        values = [
            [[round(float(v), 3) for v in of_text[i][f"value {concept}"]] for i in text_ids] for concept in concepts
        ]
        largest = [max((v for text in of_concept for v in text), default=0.0) for of_concept in values]
        latents = [int(latent) for latent in sae.latents_C]
        viewed.append({"name": sae.name, "latents": latents, "values": values, "largest": largest})
    data = {"title": title, "concepts": concepts, "texts": shown, "saes": viewed}
    # In a script element only "<" could end the data; as an escape it means the same.
    encoded = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    with atomic_file(path) as temporary:
        temporary.write_text(_TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", encoded), encoding="utf-8")


def _text(text: Text, text_id: int, tokens: pd.DataFrame, concepts: list[str], tokenizer: Any) -> dict[str, Any]:
    """Cut a text into pieces; each is a token's, counted among the text's rows, or none's (-1)."""
    offsets = tokenizer(text.text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    pieces, numbers, done = [], [], 0
    for number, position in enumerate(tokens["position"].tolist()):
        start, end = offsets[position]
        if end <= done:  # shares its characters with the token before
            continue
        if start > done:
            pieces.append(text.text[done:start])
            numbers.append(-1)
        pieces.append(text.text[max(start, done) : end])
        numbers.append(number)
        done = end
    if done < len(text.text):
        pieces.append(text.text[done:])
        numbers.append(-1)
    labels = {c: np.flatnonzero(tokens[f"label {concept}"]).tolist() for c, concept in enumerate(concepts)}
    return {
        "id": text_id,
        "pieces": pieces,
        "tokens": numbers,
        "labels": {c: own for c, own in labels.items() if own},
        "score": text.score,
    }
