"""FMS of several SAEs side by side: measured per concept, stored, tabled and drawn. What eval/FMS_*.py share."""

import argparse
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from utils.cli import Parser, positive_int
from utils.errors import UserError
from utils.evaluated import Evaluated, add_sae_arguments, choose_split, evaluated, shared_texts
from utils.fms import FEW_POSITIVES, FMS, MODES, N_REMOVED, fms, shuffled, why_not
from utils.fms_figures import figures
from utils.fms_samples import balanced_rows, encode_rows
from utils.fms_tables import show
from utils.labelled_text import LabelledText
from utils.latent_blocks import LatentBlocks
from utils.models import default_device
from utils.results import Results

_log = logging.getLogger(__name__)
_MOST_BYTES = 8 * 2**30  # of the latents of concepts that are scored side by side
_MOST_DEPTHS = 64  # of a tree that are written to the table


@dataclass(frozen=True)
class Sample:
    """The samples of one concept, and whether its classes are to count the same."""

    concept: str
    latents: LatentBlocks
    labels_B: NDArray[np.int8]
    balanced: bool = False


Sampler = Callable[[Evaluated, str, int], Iterator[Sample]]  # of an SAE on a split, with a seed


def add_arguments(parser: Parser, out: str) -> None:
    """Add the options that all FMS scripts share."""
    add_sae_arguments(parser, out)
    parser.add_argument("--mode", choices=MODES, default="paper", help="how accuracies are taken, see utils/fms.py")
    parser.add_argument("--seeds", type=positive_int, default=3, help="times that heldout halves and labels are drawn")


def token_samples(subject: Evaluated, split_name: str, seed: int) -> Iterator[Sample]:
    """Yield all tokens of each concept and as many others."""
    split = subject.cache.split(split_name)
    for c, concept in enumerate(subject.cache.concepts):
        rows_B = balanced_rows(split.label_BC[:, c], np.random.default_rng([seed, c]))
        latents_BN = encode_rows(subject.loaded.sae, split, rows_B)
        yield Sample(concept, LatentBlocks.of(latents_BN), split.label_BC[rows_B, c])


def report(
    args: argparse.Namespace,
    dataset: str,
    sampler: Sampler,
    out: str,
    more_settings: dict[str, Any] | None = None,
    live: LabelledText | None = None,
) -> tuple[pd.DataFrame, str]:
    """Measure every SAE of `args.sae` on a data set and write the results.

    Args:
        args: what `add_arguments` parsed.
        dataset: the data set's name.
        sampler: gives the samples of each concept.
        out: the name of the default folder.
        more_settings: what else decides the samples; `samples` says what they are.
        live: the texts, where the sampler runs the language model on them and needs no activations.

    Returns:
        The tidy table of the SAEs asked for, one row per SAE, concept and measure; and what to show on the screen.

    Raises:
        UserError: as `evaluated`, or no concept that can be scored.
    """
    subjects = evaluated(args, dataset, live=live is not None)
    more_settings = more_settings or {}
    if live is not None:
        split = choose_split(args.split, live.splits, live.name)
    else:
        split = subjects[0].split_name(args.split)
        for subject in subjects:
            subject.split_name(split)
    settings = {"dataset": dataset, "split": split, "mode": args.mode, "seed": args.seed, "seeds": args.seeds}
    settings |= {"texts": None if live else shared_texts(subjects), "samples": "labels"} | more_settings
    results = Results(args.out or Path("results") / f"{out}-{split}-{args.mode}", "fms", settings)
    for subject in subjects:
        results.piece(subject.label, subject.made_of, _Measurement(subject, split, sampler, args))
    table = pd.DataFrame([row for label in results.labels for row in _rows(results, label, settings)])
    asked_for = table[table["sae"].isin([subject.label for subject in subjects])]
    samples = [] if settings["samples"] in ("labels", "tokens") else [f"samples {settings['samples']}"]
    title = ", ".join([f"{dataset} {split}", f"mode {args.mode}", *samples])
    versions = {name: version(name) for name in ("torch", "numpy", "numba")}
    drawn = figures(table, title)
    results.write(table, drawn, versions)
    files = ", ".join(["fms.csv", "fms.json", *(f"{name}.png" for name in drawn)])
    return asked_for, f"{show(asked_for, title)}\nresults: {results.folder}/ ({files}; figures also as SVG)"


def _rows(results: Results, label: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    about = {"sae": label} | {key: settings[key] for key in ("dataset", "split", "mode")}
    return [about | row for row in results.rows(label)]


class _Measurement:
    """Scores one SAE on every concept; gives tidy rows (name, block, guided, concept, measure, value, note)."""

    def __init__(self, subject: Evaluated, split: str, sampler: Sampler, args: argparse.Namespace) -> None:
        self.subject, self.split, self.sampler, self.args = subject, split, sampler, args

    def __call__(self) -> list[dict[str, Any]]:
        """Raise UserError where no concept can be scored; a concept that cannot be is a row that says why."""
        self.subject.loaded.sae.to(default_device())
        samples = self.sampler(self.subject, self.split, self.args.seed)
        settings = (self.args.mode, self.args.seed, self.args.seeds)
        work = (joblib.delayed(_score)(sample, *settings) for sample in samples)
        # Threads share the latents, and the compiled trees leave the interpreter free; samples are made when needed.
        scored = joblib.Parallel(n_jobs=self._jobs(), prefer="threads", pre_dispatch="n_jobs")(work)
        self.subject.loaded.sae.cpu()
        rows = [row for concept_rows in scored for row in concept_rows]
        if all(row["measure"] == "skipped" for row in rows):
            reasons = ", ".join(f"{row['concept']}: {row['note']}" for row in rows)
            raise UserError(f"split {self.split!r}: no concept can be scored ({reasons or 'there is none'})")
        for row in rows:
            if row["note"] and row["measure"] != "skipped":
                _log.warning("%s, %s: %s", self.subject.label, row["concept"], row["note"])
        about = {"name": self.subject.name, "block": self.subject.block, "guided": self.subject.loaded.is_guided}
        return [about | row for row in rows]

    def _jobs(self) -> int:
        """Return how many concepts are scored side by side: as many as have room, were each a token-level one."""
        if self.subject.stored is None:
            return int(joblib.cpu_count())
        labels_BC = self.subject.cache.split(self.split).label_BC
        most = max(2 * int(labels_BC.sum(axis=0, dtype=np.int64).max(initial=0)), 1)
        size = 4 * min(most, len(labels_BC)) * self.subject.loaded.sae.config.n_latents
        return max(1, min(int(joblib.cpu_count()), _MOST_BYTES // size))


def _score(sample: Sample, mode: str, seed: int, n_seeds: int) -> list[dict[str, Any]]:
    labels_B, concept = sample.labels_B, sample.concept
    if reason := why_not(labels_B, mode):
        return [{"concept": concept, "measure": "skipped", "value": 1.0, "note": reason}]
    score = fms(sample.latents, labels_B, mode, seed, n_seeds=n_seeds, balanced=sample.balanced)
    controls = shuffled(sample.latents, labels_B, mode, seed, n_seeds=n_seeds, balanced=sample.balanced)
    of_controls = pd.DataFrame([measures(control) for control in controls]).mean()
    values: dict[str, float] = measures(score)
    values |= {f"shuffled_{key}": value for key, value in of_controls.items()}
    for p in (1, 5):
        values[f"fms@{p}_low"], values[f"fms@{p}_high"] = score.interval(p, seed=seed)
    values |= {f"accuracy_depth_{depth}": acc for depth, acc in enumerate(score.accs_by_depth[: _MOST_DEPTHS + 1])}
    values |= {"n_samples": score.n_samples, "n_positives": score.n_positives}
    values |= {f"root_{p}": latent for p, latent in enumerate(score.roots)}
    fewest = min(score.n_positives, score.n_samples - score.n_positives)
    few = f"only {fewest} samples of one class: see the interval" if fewest < FEW_POSITIVES else ""
    return [
        {"concept": concept, "measure": key, "value": float(value), "note": few if key == "n_positives" else ""}
        for key, value in values.items()
    ]


def measures(score: FMS) -> dict[str, float]:
    """Return FMS@1, FMS@5 and their parts by the names of the results' table."""
    values = {"fms@1": score.at(1), "fms@5": score.at(5), "accs_0": score.accs[0], "global": score.global_}
    values |= {f"local@{p}": score.local(p) for p in range(1, N_REMOVED + 1)}
    return values | {f"accs_{p}": score.accs[p] for p in range(1, N_REMOVED + 1)}
