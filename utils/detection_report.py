"""Detection of personal data by several SAEs and their rivals: measured, stored, tabled, drawn."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.activation_cache import ActivationCache
from utils.atomic import atomic_file
from utils.concept_features import concept_features
from utils.concept_latents import concept_latents
from utils.detection import (
    Classes,
    classes_of_latents,
    classes_of_presidio,
    confusion,
    detection_measures,
    probe_activations,
    probe_latents,
    true_classes,
)
from utils.errors import UserError
from utils.evaluated import Evaluated, evaluated, model_of_cache, shared_texts, texts_of
from utils.figure_style import new_figure
from utils.models import default_device, load_tokenizer
from utils.presidio import Presidio
from utils.results import Results

_HEADLINES = ["f1_micro_concepts", "f1_macro_concepts", "f1_macro", "accuracy", "balanced_accuracy", "any_f1"]
LATENTS, PROBE_ON_LATENTS, PROBE, PRESIDIO = "concept latents", "probe on latents", "probe on activations", "presidio"


@dataclass(frozen=True)
class _Detector:
    """One way to classify the tokens.

    Attributes:
        label: of its piece.
        name: of the row in the tables.
        kind: LATENTS, PROBE_ON_LATENTS, PROBE or PRESIDIO.
        made_of: what decides its results.
        classify: does it.
    """

    label: str
    name: str
    kind: str
    made_of: dict[str, Any]
    classify: Callable[[], Classes]


def report(args: argparse.Namespace, dataset: str) -> tuple[pd.DataFrame, str]:
    """Measure every SAE of `args.sae`, and what it is compared with, and write the results.

    Args:
        args: what the script parsed.
        dataset: the data set's name.

    Returns:
        The tidy table of what was asked for; and what to show on the screen.

    Raises:
        UserError: as `evaluated`; no training split; texts or tokenizer not there.
    """
    subjects = evaluated(args, dataset)
    split = subjects[0].split_name(args.split)
    train = args.train_split
    for subject in subjects:
        subject.split_name(split)
        if not (args.no_probes and subject.loaded.is_guided):
            subject.split_name(train)
    settings = {"dataset": dataset, "split": split, "train_split": train, "seed": args.seed, "tokens": args.max_tokens}
    settings |= {"texts": shared_texts(subjects)}
    results = Results(args.out or Path("results") / f"Detection_{dataset}-{split}", "detection", settings)
    detectors = [detector for subject in subjects for detector in _of_sae(subject, split, args)]
    for cache in {str(subject.cache.folder): subject.cache for subject in subjects}.values():
        detectors += _without_sae(cache, split, args)
    for detector in detectors:
        measurement = _Measurement(detector, results, _cache_of(detector, subjects), split)
        results.piece(detector.label, detector.made_of, measurement)
    table = pd.DataFrame([{"detector": label} | row for label in results.labels for row in results.rows(label)])
    own = table[table["detector"].isin([detector.label for detector in detectors])]
    figures = {"f1": _heat_map(own, f"{dataset} {split}: F1 by kind of personal data")}
    for number, detector in enumerate(detectors):
        if detector.kind == LATENTS:
            counts = pd.read_csv(_confusion_file(results, detector), index_col=0)
            figures[f"confusion-{number}"] = _confusion_map(counts, f"{detector.name}, {dataset} {split}")
    results.write(table, figures, {name: version(name) for name in ("torch", "scikit-learn", "presidio-analyzer")})
    return own, f"{show(own)}\nresults: {results.folder}/ (detection.csv, f1.png, confusion matrices in pieces/)"


def _of_sae(subject: Evaluated, split: str, args: argparse.Namespace) -> list[_Detector]:
    cache = subject.cache

    def by_latents() -> Classes:
        sae = subject.loaded.sae.to(default_device())
        latents_C = concept_latents(subject, args.train_split, tokens=True, seed=args.seed)
        if (latents_C < 0).all():
            raise UserError(f"{subject.label}: no latent tells any concept apart in split {args.train_split!r}")
        return classes_of_latents(concept_features(sae, cache.split(split), latents_C).values_BC)

    def by_probe() -> Classes:
        sae = subject.loaded.sae.to(default_device())
        return probe_latents(sae, cache.split(args.train_split), cache.split(split), args.max_tokens, args.seed)

    made_of = subject.made_of
    detectors = [_Detector(subject.label, f"{subject.name}: {LATENTS}", LATENTS, made_of, by_latents)]
    if not args.no_probes:
        label = f"{subject.label}: {PROBE_ON_LATENTS}"
        detectors.append(_Detector(label, f"{subject.name}: {PROBE_ON_LATENTS}", PROBE_ON_LATENTS, made_of, by_probe))
    return detectors


def _without_sae(cache: ActivationCache, split: str, args: argparse.Namespace) -> list[_Detector]:
    def by_probe() -> Classes:
        return probe_activations(cache.split(args.train_split), cache.split(split), args.max_tokens, args.seed)

    def by_presidio() -> Classes:
        texts = texts_of(cache, args.data).splits[split]
        tokenizer = load_tokenizer(model_of_cache(cache, args.model_path))
        return classes_of_presidio(Presidio.load(), cache.split(split), texts, tokenizer, cache.concepts)

    made_of = {"manifest_sha256": cache.checksum}
    block = f" of block {cache.manifest['block']}"
    detectors = []
    if not args.no_probes:
        detectors.append(_Detector(f"{PROBE}, {cache.folder.name}", PROBE + block, PROBE, made_of, by_probe))
    if not args.no_presidio:
        detectors.append(_Detector(f"{PRESIDIO}, {cache.folder.name}", PRESIDIO, PRESIDIO, made_of, by_presidio))
    return detectors


def _cache_of(detector: _Detector, subjects: list[Evaluated]) -> ActivationCache:
    checksum = detector.made_of["manifest_sha256"]
    return next(subject.cache for subject in subjects if subject.cache.checksum == checksum)


def _confusion_file(results: Results, detector: _Detector) -> Path:
    return results.path(detector.label, detector.made_of).with_suffix(".confusion.csv")


class _Measurement:
    """One detector; gives tidy rows (name, kind, class, measure, value), and leaves a confusion matrix in a file."""

    def __init__(self, detector: _Detector, results: Results, cache: ActivationCache, split: str) -> None:
        self.detector, self.results, self.cache, self.split = detector, results, cache, split

    def __call__(self) -> list[dict[str, Any]]:
        """Measure."""
        concepts = self.cache.concepts
        true_B = true_classes(self.cache.split(self.split).label_BC)
        if len(np.unique(true_B)) < 2:
            raise UserError(f"{self.cache.folder}: all tokens of split {self.split!r} have the same label")
        found_B = self.detector.classify()
        counts = pd.DataFrame(confusion(true_B, found_B, len(concepts)), [*concepts, "O"], [*concepts, "O"])
        with atomic_file(_confusion_file(self.results, self.detector)) as temporary:
            counts.to_csv(temporary, index_label="true")
        by_class = detection_measures(true_B, found_B, concepts)
        about = {"name": self.detector.name, "kind": self.detector.kind}
        return [
            about | {"class": name, "measure": measure, "value": value}
            for name, measures in by_class.items()
            for measure, value in measures.items()
        ]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return the headline measures, one row per detector's name; the mean over seeds, and the standard deviation."""
    overall = table[(table["class"] == "all") & table["measure"].isin(_HEADLINES)]
    grouped = overall.groupby(["name", "measure"], sort=False)["value"]
    spread = grouped.std().map(lambda value: "" if np.isnan(value) else f" ± {value:.3f}")
    return (grouped.mean().map("{:.3f}".format) + spread).unstack("measure")[_HEADLINES]


def show(table: pd.DataFrame) -> str:
    """Return the screen's tables: F1 by class, then the headline measures."""
    f1 = table[(table["measure"] == "f1")].pivot_table(index="class", columns="name", values="value", sort=False)
    return f"F1 by kind\n{f1.round(3).to_string()}\n\n{summary(table).to_string()}"


def _heat_map(table: pd.DataFrame, title: str) -> Figure:
    f1 = table[table["measure"] == "f1"].pivot_table(index="class", columns="name", values="value", sort=False)
    figure = new_figure(2.5 + 1.1 * len(f1.columns), 2.5 + 0.26 * len(f1))
    axes = figure.subplots()
    image = axes.imshow(f1, aspect="auto", cmap="cividis", vmin=0, vmax=1)
    axes.set_xticks(range(len(f1.columns)), f1.columns, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(f1)), f1.index, fontsize=8)
    for (row, column), value in np.ndenumerate(f1.to_numpy()):
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if value < 0.6 else "black"
        )
    figure.colorbar(image, label="F1")
    axes.set_title(title, loc="left", fontsize=9)
    return figure


def _confusion_map(counts: pd.DataFrame, title: str) -> Figure:
    shares = counts.div(counts.sum(axis=1).clip(lower=1), axis=0)
    figure = new_figure(3.0 + 0.3 * len(counts), 2.5 + 0.28 * len(counts))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    axes.set_xticks(range(len(counts)), counts.columns, rotation=90, fontsize=7)
    axes.set_yticks(range(len(counts)), counts.index, fontsize=7)
    axes.set_xlabel("found")
    axes.set_ylabel("true")
    figure.colorbar(image, label="share of the true class's tokens")
    axes.set_title(title, loc="left", fontsize=9)
    return figure
