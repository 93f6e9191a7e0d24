"""Wiki and Wiki_small: lines of Wikipedia articles (wikitext-103) without any concept."""

from pathlib import Path

import numpy as np

from create_data.sources import SPLITS, read_records
from utils.errors import UserError
from utils.labelled_text import LabelledText, Text, split_by_text

N_LINES = {"Wiki": 100_000, "Wiki_small": 30_000}
_HUB_ID = "Salesforce/wikitext"
_SUBSET = "wikitext-103-raw-v1"


def build(name: str, source: Path | None, seed: int) -> LabelledText:
    """Choose 100,000 (or 30,000) lines that are not empty at random; the text keeps its order.

    The lines come from the train split, and validation and test stay as they are. A source without splits, such as a
    single file, is split into train and test by text.

    Raises:
        UserError: an unreadable source (the line is named), or one without text.
    """
    files, records = read_records(name, source, _HUB_ID, _SUBSET)
    lines: dict[str, list[Text]] = {}
    empty = 0
    for record in records:
        text = record.get("text", str, _HUB_ID).strip()
        if text:
            lines.setdefault(record.split or "train", []).append(Text(text))
        empty += not text
    if not lines:
        raise UserError(f"{name}: the source holds no text")
    if len(lines) == 1:
        [texts] = lines.values()
        splits = split_by_text(_choose(texts, N_LINES[name], seed), seed=seed)
    else:
        splits = {split: lines[split] for split in dict.fromkeys(SPLITS.values()) if split in lines}
        splits["train"] = _choose(splits.get("train", []), N_LINES[name], seed)
    return LabelledText(name, [], splits, {"files": files, "seed": seed}, {"empty_lines_dropped": empty})


def _choose(texts: list[Text], n_texts: int, seed: int) -> list[Text]:
    if len(texts) <= n_texts:
        return texts
    chosen = np.random.default_rng(seed).choice(len(texts), n_texts, replace=False)
    return [texts[i] for i in np.sort(chosen)]
