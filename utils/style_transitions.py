"""How likely the next sentence is, of either style after either style, under steering (paper, Shakespeare's style)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils.errors import UserError
from utils.json_lines import append_lines, read_lines
from utils.labelled_text import Text
from utils.latent_steerer import LatentSteerer
from utils.scorers.base import Scored
from utils.scorers.fluency import log_perplexities


@dataclass(frozen=True)
class Transition:
    """A sentence and the one that follows it, each in one of two styles."""

    name: str
    pair: int
    text: Scored


def transitions(texts: Sequence[Text], styles: tuple[str, str], n_pairs: int, seed: int) -> list[Transition]:
    """Choose pairs of consecutive sentences, and give each in the four combinations of two styles.

    Args:
        texts: sentences, in order, each of them once with the style (labelled) and once without.
        styles: what the two are called.
        n_pairs: how many at most.
        seed: of the choice.

    Raises:
        UserError: the two versions are not as many.
    """
    versions = [[text.text for text in texts if bool(text.spans) == has_style] for has_style in (True, False)]
    if len(versions[0]) != len(versions[1]) or len(versions[0]) < 2:
        counts = " and ".join(str(len(own)) for own in versions)
        raise UserError(f"{counts} sentences with the style and without: no pairs of versions; use --transitions 0")
    random = np.random.default_rng([seed, 7])
    n_there = len(versions[0]) - 1
    chosen = np.sort(random.choice(n_there, min(n_pairs, n_there), replace=False)).tolist()
    return [
        Transition(f"next_{styles[a]}_to_{styles[b]}", i, Scored(versions[a][i], " " + versions[b][i + 1]))
        for i in chosen
        for a in (0, 1)
        for b in (0, 1)
    ]


def transition_perplexities(
    model: Any,
    tokenizer: Any,
    chosen: Sequence[Transition],
    alphas: Sequence[float],
    steering: LatentSteerer,
    path: Path,
) -> list[dict[str, Any]]:
    """Return the log-perplexity of every next sentence at every strength: alpha, name, pair, value.

    Args:
        model: with an SAE.
        tokenizer: its tokenizer.
        chosen: see `transitions`.
        alphas: the strengths.
        steering: by which latents.
        path: a file that keeps what was measured, strength by strength.
    """
    known = read_lines(path, ("alpha", "name", "pair", "value"))
    done = {(row["alpha"], row["name"], row["pair"]) for row in known}
    todo = {alpha: [one for one in chosen if (alpha, one.name, one.pair) not in done] for alpha in alphas}
    total = sum(map(len, todo.values()))
    with tqdm(total=total, unit="text", desc="next sentences", delay=2) as bar:
        for alpha, own in todo.items():
            if not own:
                continue
            with model.steer(dict.fromkeys(steering.latents, alpha), beta=steering.beta):
                values = log_perplexities(model, tokenizer, [one.text for one in own])
            rows = [
                {"alpha": alpha, "name": one.name, "pair": one.pair, "value": value}
                for one, value in zip(own, values, strict=True)
            ]
            append_lines(path, rows)
            known += rows
            bar.update(len(own))
    wanted = {(alpha, one.name, one.pair) for alpha in alphas for one in chosen}
    return [row for row in known if (row["alpha"], row["name"], row["pair"]) in wanted]
