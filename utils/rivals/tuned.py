"""Settings of each method and data set: the literature's, and what a recorded sweep chose (eval/tune_rivals.py)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.atomic import read_json_object
from utils.errors import UserError

# What the methods' papers recommend, and the strengths that are tried around it.
LITERATURE: Mapping[str, float] = {
    "icv": 0.1,
    "diffvec": 0.1,
    "preadd": -1.0,
    "model-arithmetic": -0.6,
    "model-arithmetic-union": -0.96,
}
SWEEPS: Mapping[str, tuple[float, ...]] = {
    "icv": (-0.2, -0.1, -0.05, -0.02, -0.01, 0.01, 0.02, 0.05, 0.1, 0.2),
    "diffvec": (-0.2, -0.1, -0.05, -0.02, -0.01, 0.01, 0.02, 0.05, 0.1, 0.2),
    "preadd": (-2.0, -1.0, -0.5, 0.25, 0.5, 0.75, 1.0),
    "model-arithmetic": (-0.8, -0.6, -0.3, 0.5, 1.0, 2.0),
    "model-arithmetic-union": (-0.96, -0.6, -0.3, 0.5, 1.0, 2.0),
    "g-sae": (-0.2, -0.1, -0.05, -0.025, 0.025, 0.05, 0.1, 0.2),
    "sae": (-0.2, -0.1, -0.05, -0.025, 0.025, 0.05, 0.1, 0.2),
}
# With a beta that follows the latents most positions are left alone, so that more strength is borne.
FOLLOWING = (-2.0, -1.0, -0.5, -0.25, -0.1)
DEFAULT_PAIRS = 200
MOST_NATS, MOST_REPETITION, FEWEST_WORDS = 0.3, 0.1, 0.75  # how far quality may fall
DIRECTIONS = {"down": -1, "up": 1}


@dataclass(frozen=True)
class Tuned:
    """What eval/rivals/<method>-<DATASET>.json holds, or, where there is none, what is known without tuning.

    Attributes:
        strengths: the sweep, 0 left out.
        options: `pairs`, `prefix` or `beta`.
        chosen: the strength for each direction, None where none is within the limits of quality.
    """

    strengths: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, float | None] = field(default_factory=dict)


def file_of(folder: Path, method: str, dataset: str) -> Path:
    """Return where the settings of a method and a data set lie."""
    return folder / f"{method}-{dataset}.json"


def load_tuned(folder: Path, method: str, dataset: str, model: str, *, only_down: bool) -> Tuned:
    """Read the settings for a language model; without any, the literature's sweep.

    Args:
        folder: with one file for each method and data set.
        method: a rival, `g-sae` or `sae`.
        dataset: the data set's name.
        model: settings that were tuned on another do not count.
        only_down: whether only negative strengths make sense.

    Raises:
        UserError: a damaged file.
    """
    path = file_of(folder, method, dataset)
    if path.exists():
        found = read_json_object(path, ("model", "strengths", "options", "chosen"))
        try:
            if found["model"] == model:
                return Tuned(tuple(map(float, found["strengths"])), dict(found["options"]), dict(found["chosen"]))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: not settings of a method ({error})") from None
    return Tuned(sweep_of(method, only_down=only_down))


def sweep_of(method: str, *, only_down: bool) -> tuple[float, ...]:
    """Return the strengths that are tried where nothing is known."""
    if only_down and method in ("g-sae", "sae"):
        return FOLLOWING
    return tuple(value for value in SWEEPS[method] if value < 0 or not only_down)


def choose(tried: pd.DataFrame, effect: str, sign: int, *, signed: bool = True) -> float | None:
    """Return the strength of most effect among those whose quality is within the limits; None where none has any.

    Quality is within them where the log-perplexity has risen by at most 0.3 nats per token, the repetition by at most
    0.1, and the texts have at least three quarters of the words. The same rule serves every method, SAEs included.

    Args:
        tried: of one method: `alpha`, 0 included, `measure` and `value`.
        effect: the measure.
        sign: -1 where less of it is wanted.
        signed: whether a strength below 0 means less of it; not so for a latent that was not tied to it.
    """
    values = tried.pivot_table(index="alpha", columns="measure", values="value")
    plain = values.loc[0.0]
    within = (values["log_perplexity"] <= plain["log_perplexity"] + MOST_NATS) & (
        values["repetition"] <= plain["repetition"] + MOST_REPETITION
    )
    within &= values["n_words"] >= FEWEST_WORDS * plain["n_words"]
    if signed:
        within &= np.sign(values.index.to_numpy()) == sign
    gain = sign * (values[effect] - plain[effect])
    able = gain[within & (gain > 0)]
    return float(able.index[int(able.to_numpy().argmax())]) if len(able) else None
