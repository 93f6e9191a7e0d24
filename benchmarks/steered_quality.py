"""The claim: a guided SAE's latent steers further at the same quality than a vanilla SAE's best one.

Runs the steering experiment of a data set for both SAEs, by the scripts users run, and prints the README's tables: what
equal effect costs in quality, and what equal quality gives in effect. Goes on where an earlier run stopped.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eval import Steering_PII, Steering_RTP, Steering_SP, recipe
from utils.cli import Parser, positive_int, run
from utils.markdown import markdown_table
from utils.steering_tables import at_equal

EXAMPLES = """\
examples:
  python benchmarks/steered_quality.py PII_synth
  python benchmarks/steered_quality.py SP --source FOLDER
  python benchmarks/steered_quality.py RTP --source rtp.jsonl
"""


@dataclass(frozen=True)
class Setting:
    """One experiment.

    Attributes:
        script: its `main`.
        alphas: the sweep; finer than the paper's, where the language is still whole.
        effect: the measure.
        steps: by how much it is to change.
        arguments: beside.
    """

    script: Callable[[Sequence[str]], pd.DataFrame]
    alphas: tuple[float, ...]
    effect: str
    steps: tuple[float, ...]
    arguments: tuple[str, ...] = ()


_EITHER_WAY = (-0.4, -0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.4)
SETTINGS = {
    "SP": Setting(Steering_SP.main, _EITHER_WAY, "style", (0.1, 0.2, -0.1, -0.2)),
    "RTP": Setting(Steering_RTP.main, _EITHER_WAY, "toxicity", (0.05, 0.1, -0.02, -0.04), ("--dataset", "RTP_split")),
    "PII_synth": Setting(Steering_PII.main, (-3.0, -2.0, -1.0, -0.5, -0.25, -0.1, 0.0), "pii_clean", (-0.2, -0.4)),
}
NATS = (0.1, 0.3)
QUALITIES = ("log_perplexity", "repetition", "distinct_2")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, do the work and print Markdown tables."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", choices=SETTINGS, help="SP, RTP or PII_synth")
    parser.add_argument("--source", help="where the texts come from, as in create_dataset.py")
    parser.add_argument("--max-texts", type=positive_int, default=100, help="prompts")
    parser.add_argument("--seed", type=int, default=0, help="of the SAEs")
    args = parser.parse_args(argv)
    start, setting = time.perf_counter(), SETTINGS[args.dataset]
    source = ["--source", args.source] if args.source else []
    recipe.cache(args.dataset, args.source)
    config = recipe.shipped_config(args.dataset)
    refs = recipe.train_pair(config, args.seed, Path("ckpt") / f"seed{args.seed}")
    saes = [word for ref in refs for word in ("--sae", ref)]
    if args.dataset == "SP":
        recipe.style_classifier(args.source)
    alphas = ["--alphas", *(f"{alpha:g}" for alpha in setting.alphas), "--max-texts", str(args.max_texts)]
    table = setting.script([*saes, *alphas, *setting.arguments, *source])
    print(f"\n{equal_effect(table, setting)}\n\n{equal_quality(table, setting)}\n")
    print(f"{args.max_texts} prompts; {time.perf_counter() - start:.0f} s")


def equal_effect(table: pd.DataFrame, setting: Setting) -> str:
    """Return what each SAE needs for the same effect: strength, and quality there."""
    plain = _plain(table)
    header = ["effect", "SAE", "alpha", *QUALITIES]
    rows = [
        [f"{setting.effect} {plain[setting.effect]:.3f}", "unsteered", "0", *(f"{plain[q]:.3f}" for q in QUALITIES)]
    ]
    for step in setting.steps:
        given = plain[setting.effect] + step
        found = {q: at_equal(table, setting.effect, q, given).set_index("label") for q in QUALITIES}
        for label in found[QUALITIES[0]].index:
            alpha = found[QUALITIES[0]].loc[label, "alpha"]
            values = [found[q].loc[label, q] for q in QUALITIES]
            rows.append([f"{setting.effect} {given:.3f}", _name(table, label), *map(_shown, [alpha, *values])])
    return markdown_table(header, rows)


def equal_quality(table: pd.DataFrame, setting: Setting) -> str:
    """Return what each SAE reaches, on either side, where the perplexity has first risen by so much.

    Repetition stands beside it, as perplexity alone falls where a text goes round in circles.
    """
    plain = _plain(table)
    measures = [setting.effect, "repetition", "distinct_2"]
    rows = []
    for nats in NATS:
        for sign, side in ((1, "up"), (-1, "down")):
            own = table[table["alpha"] * sign >= 0]
            if own["alpha"].abs().max() == 0:
                continue
            given = plain["log_perplexity"] + nats
            found = {name: at_equal(own, "log_perplexity", name, given).set_index("label") for name in measures}
            for label in found[setting.effect].index:
                values = [found[setting.effect].loc[label, "alpha"], *(found[m].loc[label, m] for m in measures)]
                rows.append([f"+{nats:g} nats, {side}", _name(table, label), *map(_shown, values)])
    return markdown_table(["log-perplexity", "SAE", "alpha", *measures], rows)


def _plain(table: pd.DataFrame) -> dict[str, float]:
    return dict(table[table["alpha"] == 0].drop_duplicates("measure").set_index("measure")["value"])


def _name(table: pd.DataFrame, label: Any) -> str:
    row = table[table["label"] == label].iloc[0]
    return f"{'guided' if row['guided'] else 'vanilla'}, {row['method']}"


def _shown(value: float) -> str:
    return "not reached" if np.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    run(main)
