"""Steering experiments: sweeps of several SAEs, tabled, drawn and shown. What eval/Steering_*.py share."""

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.cli import Parser, positive_int
from utils.completion_view import write_completion_view
from utils.completions import read_completions, settings_beside, write_completions
from utils.errors import UserError
from utils.evaluated import add_sae_arguments, choose_split
from utils.judges.options import add_judge_arguments, describe, judge_of
from utils.labelled_text import LabelledText
from utils.results import Results, only_process, readable
from utils.rivals.tuned import DEFAULT_PAIRS
from utils.scorers.base import Scorer
from utils.scorers.closeness import Closeness
from utils.steering import BETAS
from utils.steering_candidates import RIVALS, Candidate
from utils.steering_experiment import Experiment
from utils.steering_sweep import COMPLETIONS, Sweep
from utils.steering_tables import effect_figure, pareto_figure, show, transition_figure
from utils.style_transitions import transitions

TUNED = Path(__file__).parents[1] / "eval" / "rivals"
_PACKAGES = ("torch", "transformers", "alt-profanity-check", "presidio-analyzer", "scikit-learn", "openai", "pydantic")


def add_arguments(parser: Parser, experiment: Experiment) -> None:
    """Add the options that all steering scripts share."""
    add_sae_arguments(parser, f"{experiment.name}-<split>", required=False)
    how = "strengths; by latents as shares of the activation's norm (default: the paper's sweep; for a rival as tuned)"
    parser.add_argument("--alphas", type=float, nargs="+", help=how)
    betas = "by an SAE's latents, constant: alpha everywhere, active: where the latent is, balanced: as far as it is"
    how = f"{betas} (is not, upwards); or a rival: {', '.join(RIVALS)} (default: {' '.join(experiment.betas)})"
    parser.add_argument("--method", choices=(*BETAS, *RIVALS), nargs="+", metavar="METHOD", help=how)
    pairs = f"of texts that icv and diffvec are fitted on (default: as tuned, else {DEFAULT_PAIRS})"
    parser.add_argument("--pairs", type=positive_int, help=pairs)
    invites = f"for preadd and model-arithmetic (default: as tuned, else: {experiment.prefixes[0]})"
    parser.add_argument("--prefix", help=invites)
    parser.add_argument("--tuned", action="store_true", help="SAEs, too, at the strengths in --tuned-settings only")
    tuned = "folder with what eval/tune_rivals.py chose; rivals take strengths, pairs and prefix from there"
    parser.add_argument("--tuned-settings", type=Path, default=TUNED, help=tuned)
    parser.add_argument("--latents", type=int, nargs="+", help="steer by these, not by those of the concepts")
    parser.add_argument("--max-texts", type=positive_int, help="at most so many prompts, chosen at random")
    parser.add_argument("--max-new-tokens", type=positive_int, default=32, help="tokens that are written at most")
    parser.add_argument("--rows", type=positive_int, default=64, help="of a batch; several strengths share one")
    parser.add_argument("--source", type=Path, help="where the texts come from, as in create_dataset.py")
    parser.add_argument("--model-path", help="local model folder")
    closeness = "folder or hub name of an embedding model: closeness of completion and prompt is measured, too"
    parser.add_argument("--embedding-model", help=closeness)
    add_judge_arguments(parser)


def report(
    args: argparse.Namespace, experiment: Experiment, data: LabelledText, scorer: Scorer, compared: list[Candidate]
) -> tuple[pd.DataFrame, str]:
    """Steer by every SAE and every rival asked for, score what is written, and write the results.

    Args:
        args: what `add_arguments` parsed.
        experiment: see there.
        data: the texts.
        scorer: of the effect.
        compared: see `utils.steering_candidates.candidates`.

    Returns:
        The tidy table of what was asked for, one row per SAE or rival, strength and measure; and what to show.

    Raises:
        UserError: a bad reference, split, latent or strength; a model or a judge that cannot be reached.
    """
    if not np.isfinite(args.alphas or []).all():
        raise UserError("--alphas: numbers are needed")
    split = choose_split(args.split, data.splits, data.name)
    settings = {
        "dataset": data.name,
        "texts_sha256": data.fingerprint(),
        "split": split,
        "max_texts": args.max_texts,
        "max_new_tokens": args.max_new_tokens,
        "cut": experiment.cut,
        "seed": args.seed,
    }
    if experiment.styles is not None and args.transitions:
        transitions(data.splits[split], experiment.styles, args.transitions, args.seed)  # bad texts are told at once
    scorers = [scorer, *([Closeness.load(args.embedding_model)] if args.embedding_model else [])]
    folder = args.out or Path("results") / f"{experiment.name}-{split}"
    with only_process(folder):
        return _report(args, experiment, data, split, scorers, Results(folder, "steering", settings), compared)


def _report(
    args: argparse.Namespace,
    experiment: Experiment,
    data: LabelledText,
    split: str,
    scorers: list[Scorer],
    results: Results,
    compared: list[Candidate],
) -> tuple[pd.DataFrame, str]:
    judge = judge_of(args, results.folder / "scores")
    tables: dict[str, pd.DataFrame] = {}
    for candidate in compared:
        # -0.0 is 0
        alphas = sorted({alpha + 0.0 for alpha in args.alphas or candidate.alphas} | {0.0})
        work = Sweep(candidate, args, experiment, data, split, alphas, results, scorers, judge)
        label, made_of = candidate.label, work.made_of()
        results.piece(label, made_of, work.run, retry=_lacks_values)
        path = results.path(label, made_of).with_suffix(COMPLETIONS)
        tables[label] = read_completions(path)
        beside = settings_beside(path) or {}
        write_completions(results.folder / "completions" / f"{readable(label)}.csv", tables[label], beside)
    table = pd.DataFrame([{"label": label} | row for label in results.labels for row in results.rows(label)])
    own = table[table["label"].isin(tables)]
    title = f"{data.name} {split}"
    figures = {
        "effect": effect_figure(own, experiment.effect, title),
        "pareto": pareto_figure(own, experiment.effect, title),
    }
    if own["measure"].str.startswith("next_").any():
        figures["transitions"] = transition_figure(own, f"{title}: how likely the next sentence is")
    results.write(table, figures, {name: version(name) for name in _PACKAGES})
    write_completion_view(results.folder / "completions.html", title, tables, experiment.effect, scorers[0])
    judged = f"\n{describe(judge)}" if judge is not None else ""
    files = ["steering.csv", "steering.json", "completions.html", "completions/", *(f"{name}.png" for name in figures)]
    return own, f"{show(own, experiment.effect)}{judged}\nresults: {results.folder}/ ({', '.join(files)})"


def _lacks_values(rows: list[dict[str, Any]]) -> bool:
    """Tell whether a call may still bring what a judge left out."""
    return any(row["missing"] > 0 and row["measure"].startswith("judge_") for row in rows)
