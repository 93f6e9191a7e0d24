"""Values of the concepts' latents of several SAEs: measured, stored, tabled, drawn. What eval/Features_*.py share."""

import argparse
import logging
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from utils.activation_cache import ActivationCache
from utils.atomic import atomic_file
from utils.cli import Parser, positive_int
from utils.concept_features import concept_features, summarise, text_table, token_table
from utils.concept_latents import concept_latents
from utils.errors import UserError
from utils.evaluated import Evaluated, add_sae_arguments, evaluated, model_of_cache, shared_texts, texts_of
from utils.feature_figures import calibration_curves, densities
from utils.labelled_text import Text
from utils.models import default_device, load_tokenizer
from utils.results import Results
from utils.token_view import ViewedSAE, write_token_view

_log = logging.getLogger(__name__)
Panel = tuple[str, pd.DataFrame]
_SHOWN = ("auroc_value", "auroc_pre", "spearman_value", "active_positive", "active_negative")


def add_arguments(parser: Parser, out: str) -> None:
    """Add the options that both scripts share."""
    add_sae_arguments(parser, out)
    parser.add_argument(
        "--roots",
        metavar="SPLIT",
        help="split on which an SAE that was not guided gets its latents (default: train, where there is one)",
    )
    parser.add_argument("--view-texts", type=positive_int, default=200, help="texts in tokens.html")
    parser.add_argument("--model-path", help="local model folder, for its tokenizer")


def report(args: argparse.Namespace, dataset: str, out: str, *, tokens: bool) -> tuple[pd.DataFrame, str]:
    """Measure every SAE of `args.sae` and write the results.

    Args:
        args: what `add_arguments` parsed.
        dataset: the data set's name.
        out: the name of the default folder.
        tokens: whether labels are those of tokens, not of whole texts.

    Returns:
        The tidy table of the SAEs asked for; and what to show on the screen.

    Raises:
        UserError: as `evaluated`; texts or tokenizer not there; SAEs of other concepts or tokens than the first.
    """
    subjects = evaluated(args, dataset)
    split = subjects[0].split_name(args.split)
    cache = subjects[0].cache
    for subject in subjects:
        subject.split_name(split)
    texts = texts_of(cache, args.data).splits[split]
    tokenizer = load_tokenizer(model_of_cache(cache, args.model_path))
    settings = {"dataset": dataset, "split": split, "seed": args.seed, "roots": _roots_split(args, cache, split)}
    settings |= {"texts": shared_texts(subjects), "unit": "token" if tokens else "text"}
    results = Results(args.out or Path("results") / f"{out}-{split}", "features", settings)
    measurements = {subject.label: _Measurement(subject, results, settings, texts, tokens) for subject in subjects}
    for subject in subjects:
        results.piece(subject.label, subject.made_of, measurements[subject.label])
    table = pd.DataFrame([{"sae": label} | row for label in results.labels for row in results.rows(label)])
    own = table[table["sae"].isin(measurements)]
    title = f"{dataset} {split}"
    figures: dict[str, Figure] = {}
    of_texts: dict[str, pd.DataFrame] = {}
    viewed: list[ViewedSAE] = []
    ids: list[int] = []
    for number, subject in enumerate(subjects):
        token_values, text_values = (pd.read_parquet(path) for path in measurements[subject.label].files)
        panels = _panels(token_values, text_values, cache.concepts, tokens)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(subject.name).name)
        figures[f"densities-{number}-{name}"] = densities(panels, len(cache.concepts), f"{subject.label}, {title}")
        of_texts[subject.label] = text_values
        latents = own[(own["sae"] == subject.label) & (own["measure"] == "latent")]["value"].to_numpy(int)
        if subject.model == subjects[0].model:
            ids = ids or _shown_texts(token_values, args.view_texts, args.seed)
            viewed.append(ViewedSAE(subject.label, latents, token_values[token_values["text_id"].isin(ids)]))
        else:
            _log.warning("%s has other tokens than %s: not in tokens.html", subject.label, subjects[0].label)
    if not tokens and "score" in next(iter(of_texts.values())):
        for concept in cache.concepts:
            chosen = {name: texts[texts["concept"] == concept] for name, texts in of_texts.items()}
            figures[f"calibration-{concept}"] = calibration_curves(chosen, f"{title}, {concept}")
    results.write(table, figures, {name: version(name) for name in ("torch", "scipy", "scikit-learn")})
    write_token_view(results.folder / "tokens.html", title, viewed, cache.concepts, texts, ids, tokenizer)
    return (
        own,
        f"{_show(own, 'token' if tokens else 'text')}\nresults: {results.folder}/ (features.csv, tokens.html ...)",
    )


def _shown_texts(tokens: pd.DataFrame, n_texts: int, seed: int) -> list[int]:
    """Choose texts at random, of those that have tokens."""
    return sorted(np.random.default_rng(seed).permutation(tokens["text_id"].unique())[:n_texts].tolist())


def _roots_split(args: argparse.Namespace, cache: ActivationCache, split: str) -> str:
    name = args.roots or ("train" if "train" in cache.manifest["splits"] else split)
    cache.split(name)
    return str(name)


def _panels(tokens: pd.DataFrame, texts: pd.DataFrame, concepts: list[str], of_tokens: bool) -> Iterator[Panel]:
    """Yield label and pre-activation of one concept after the other."""
    for concept in concepts:
        if of_tokens:
            columns = {"label": f"label {concept}", "pre": f"pre {concept}"}
            yield concept, pd.DataFrame({name: tokens[column] for name, column in columns.items()})
        else:
            yield concept, texts[texts["concept"] == concept]


class _Measurement:
    """One SAE; gives tidy rows (name, concept, measure, value), and leaves its tokens and texts in two files."""

    def __init__(
        self, subject: Evaluated, results: Results, settings: dict[str, Any], texts: list[Text], tokens: bool
    ) -> None:
        self.subject, self.settings, self.texts, self.tokens = subject, settings, texts, tokens
        path = results.path(subject.label, subject.made_of)
        self.files = (path.with_suffix(".tokens.parquet"), path.with_suffix(".texts.parquet"))

    def __call__(self) -> list[dict[str, Any]]:
        """Measure, and write both files."""
        subject, cache = self.subject, self.subject.cache
        subject.loaded.sae.to(default_device())
        latents_C = concept_latents(subject, self.settings["roots"], tokens=self.tokens, seed=self.settings["seed"])
        if (latents_C < 0).all():
            raise UserError(f"{subject.label}: no latent tells any concept apart in split {self.settings['roots']!r}")
        split = cache.split(self.settings["split"])
        tokens = token_table(split, cache.concepts, concept_features(subject.loaded.sae, split, latents_C))
        texts = text_table(tokens, cache.concepts, self.texts)
        for path, table in zip(self.files, (tokens, texts), strict=True):
            with atomic_file(path) as temporary:
                table.to_parquet(temporary, index=False, compression="zstd")
        subject.loaded.sae.cpu()
        rows = []
        for c, concept in enumerate(cache.concepts):
            columns = {name: tokens[f"{name} {concept}"] for name in ("label", "value", "pre")}
            measures = {"latent": float(latents_C[c])}
            measures |= summarise(pd.DataFrame(columns | {"active": columns["value"] != 0}), "token")
            measures |= summarise(texts[texts["concept"] == concept], "text")
            about = {"name": subject.name, "guided": subject.loaded.is_guided, "concept": concept}
            # JSON has no NaN: what cannot be told is left out.
            rows += [about | {"measure": key, "value": v} for key, v in measures.items() if np.isfinite(v)]
        return rows


def _show(table: pd.DataFrame, unit: str) -> str:
    parts = []
    for sae, own in table.groupby("sae", sort=False):
        values = own.pivot_table(index="concept", columns="measure", values="value", sort=False)
        columns = ["latent", *(f"{unit}_{name}" for name in _SHOWN)]
        parts.append(f"{sae}\n{values.reindex(columns=columns).round(3).astype({'latent': int}).to_string()}\n")
    return "\n".join(parts)
