"""Combi_SP-tox_abc: Shakespearean style and toxicity in one data set, with texts SP : RTP : Wiki as a : b : c."""

import re
from pathlib import Path

import numpy as np

from create_data import rtp, sp, wiki
from utils.activation_cache import EVALUATION_SPLITS
from utils.errors import UserError
from utils.labelled_text import LabelledText, Text

_NAME = re.compile(r"Combi_SP-tox_(\d)(\d)(\d)")
_PARTS = ("SP", "RTP", "Wiki")


def is_combi(name: str) -> bool:
    """Tell whether a name is one of these data sets."""
    return _NAME.fullmatch(name) is not None


def build(name: str, source: Path | None, seed: int) -> LabelledText:
    """Mix as many texts as the ratio allows, in random order, into a train and a test split.

    The paper names these mixtures but not how they were made; this is our own recipe: train takes from the parts' train
    splits, test from their test splits (where there is none, from their validation splits), and a text keeps the label
    of its part. A text of one part is not labelled for the other part's concept.

    Args:
        name: `Combi_SP-tox_abc` with three digits.
        source: a folder with a folder (or file) for each part: `SP`, `RTP`, `Wiki`; None fetches them.
        seed: of the choice, and of the parts.

    Raises:
        UserError: a part that is missing or bad, or a ratio of nothing.
    """
    matched = _NAME.fullmatch(name)
    if matched is None or not any(digit != "0" for digit in matched.groups()):
        raise UserError(f"{name}: three digits, not all 0, must follow Combi_SP-tox_")
    ratio = {part: int(digit) for part, digit in zip(_PARTS, matched.groups(), strict=True) if digit != "0"}
    parts = {part: _build_part(part, _find_part(source, part), seed) for part in ratio}
    random = np.random.default_rng(seed)
    splits = {}
    for split in ("train", "test"):
        pools = {part: data.splits[_own_split(data, split)] for part, data in parts.items()}
        unit = min(len(pools[part]) // times for part, times in ratio.items())
        chosen: list[Text] = []
        for part, times in ratio.items():
            chosen += [pools[part][i] for i in random.choice(len(pools[part]), unit * times, replace=False)]
        splits[split] = [chosen[i] for i in random.permutation(len(chosen))]
    settings = {"parts": {part: data.settings for part, data in parts.items()}, "ratio": ratio, "seed": seed}
    counts = {f"{part}_{reason}": count for part, data in parts.items() for reason, count in data.counts.items()}
    return LabelledText(name, [sp.CONCEPT, rtp.CONCEPT], splits, settings, counts)


def _find_part(source: Path | None, part: str) -> Path | None:
    if source is None:
        return None
    found = sorted(path for path in source.glob("*") if path.stem == part) if source.is_dir() else []
    if not found:
        raise UserError(f"--source {source}: a folder with {', '.join(_PARTS)} is expected; {part} is missing")
    return found[0]


def _build_part(part: str, source: Path | None, seed: int) -> LabelledText:
    if part == "SP":
        return sp.build(source)
    return rtp.build("RTP", source, seed) if part == "RTP" else wiki.build("Wiki", source, seed)


def _own_split(data: LabelledText, split: str) -> str:
    wanted = ("train",) if split == "train" else EVALUATION_SPLITS
    own = next((name for name in wanted if name in data.splits), None)
    if own is None:
        raise UserError(f"{data.name}: no {split} split (it has {', '.join(data.splits)}); check --source")
    return own
