"""FMS of several SAEs side by side: measured per concept, stored, tabled and drawn. What eval/FMS_*.py share."""

import argparse
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from utils.activation_cache import ActivationCache, ActivationSplit
from utils.activation_store import cache_name
from utils.atomic import sha256_file
from utils.checkpoint import Checkpoint, load_checkpoint
from utils.cli import Parser
from utils.errors import UserError
from utils.fms import FMS, MODES, N_REMOVED, fms, shuffled
from utils.fms_samples import balanced_rows, encode_rows, text_means
from utils.results import Results
from utils.sae import SAE

HEADLINES = ["fms@1", "fms@5", "accs_0", "local@1", "local@5", "global", "shuffled_fms@1", "shuffled_fms@5"]
Sample = tuple[str, NDArray[np.float32], NDArray[np.int8]]


def add_arguments(parser: Parser) -> None:
    """Add the options that all FMS scripts share."""
    parser.add_argument(
        "--sae", action="append", required=True, metavar="CKPT", help="checkpoint folder; give several to compare"
    )
    parser.add_argument("--split", help="split to score on (default: test, or valid where there is no test)")
    parser.add_argument("--mode", choices=MODES, default="paper", help="how accuracies are taken, see utils/fms.py")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder of the cached activations")
    parser.add_argument(
        "--out", type=Path, help="folder for the results (default: results/FMS_<DATASET>-<split>-<mode>)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the chosen tokens, the halves and the shuffled labels")


def sentence_samples(sae: SAE, split: ActivationSplit, concepts: list[str], seed: int) -> Iterator[Sample]:
    """Yield (concept, latents_BN, labels_B) with the texts' means, the same texts for every concept."""
    means_BN, labels_BC = text_means(sae, split)
    for c, concept in enumerate(concepts):
        yield concept, means_BN, labels_BC[:, c]


def token_samples(sae: SAE, split: ActivationSplit, concepts: list[str], seed: int) -> Iterator[Sample]:
    """Yield (concept, latents_BN, labels_B) with all tokens of the concept and as many others."""
    for c, concept in enumerate(concepts):
        rows_B = balanced_rows(split.label_BC[:, c], np.random.default_rng([seed, c]))
        yield concept, encode_rows(sae, split, rows_B), split.label_BC[rows_B, c]


def report(args: argparse.Namespace, dataset: str, samples: Any) -> pd.DataFrame:
    """Measure every SAE of `args.sae` on a data set, write the results and print the table.

    Args:
        args: what `add_arguments` parsed.
        dataset: the data set's name.
        samples: `sentence_samples` or `token_samples`.

    Returns:
        The tidy table: one row per SAE, concept and measure.

    Raises:
        UserError: a bad checkpoint, no cache for it, a split it does not have, or no concept that can be scored.
    """
    checkpoints = [load_checkpoint(ref) for ref in dict.fromkeys(args.sae)]
    caches = [_cache_of(checkpoint, dataset, args.data) for checkpoint in checkpoints]
    splits = [args.split or cache.evaluation_split() for cache in caches]
    for cache, split in zip(caches, splits, strict=True):
        if split is None:
            raise UserError(f"{cache.folder} has no test or valid split; name one with --split")
        cache.split(split)
    results = Results(args.out or Path("results") / f"FMS_{dataset}-{splits[0]}-{args.mode}")
    rows, settings = [], []
    for checkpoint, cache, split in zip(checkpoints, caches, splits, strict=True):
        piece_settings = {
            "sae_sha256": sha256_file(checkpoint.folder / "sae.safetensors"),
            "manifest_sha256": cache.checksum,
            "dataset": dataset,
            "split": split,
            "mode": args.mode,
            "seed": args.seed,
        }
        label = str(checkpoint.folder)
        measured = results.piece(label, piece_settings, lambda: measure(checkpoint, cache, str(split), samples, args))  # noqa: B023
        about = {"sae": label, "name": checkpoint.folder.name, "sae_seed": checkpoint.config.get("seed")}
        rows += [about | row for row in measured]
        settings.append({"sae": label} | piece_settings)
    table = pd.DataFrame(rows)
    _print(table, dataset, splits[0], args.mode)
    versions = {name: version(name) for name in ("torch", "numpy")}
    results.write("fms", table, {"saes": settings, "versions": versions}, _figure(table, dataset, args.mode))
    print(f"results: {results.folder}/fms.csv, fms.json, fms.png")  # noqa: T201
    return table


def _cache_of(checkpoint: Checkpoint, dataset: str, data: Path) -> ActivationCache:
    config = checkpoint.config
    cache = ActivationCache(data / cache_name(config["model"], dataset, config["block"], config["site"]))
    if cache.d_model != checkpoint.sae.config.n_inputs:
        n_inputs = checkpoint.sae.config.n_inputs
        raise UserError(f"{checkpoint.folder}: n_inputs is {n_inputs}, but {cache.folder} is {cache.d_model} wide")
    if cache.manifest["revision"] != config["revision"]:
        revisions = f"{cache.manifest['revision']}, not {config['revision']}"
        raise UserError(
            f"{cache.folder} comes from other weights than {checkpoint.folder} was trained on ({revisions})"
        )
    return cache


def measure(
    checkpoint: Checkpoint, cache: ActivationCache, split_name: str, samples: Any, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Score one SAE on every concept; return tidy rows (concept, measure, value), skipped concepts included."""
    split = cache.split(split_name)
    n_positive_C = split.label_BC.sum(axis=0, dtype=np.int64)
    present = [concept for concept, n in zip(cache.concepts, n_positive_C, strict=True) if n > 0]
    rows = [
        {"concept": concept, "measure": "skipped", "value": 1.0} for concept in cache.concepts if concept not in present
    ]
    every = samples(checkpoint.sae, split, cache.concepts, args.seed)
    work = (joblib.delayed(_score)(*sample, args.mode, args.seed) for sample in every if sample[0] in present)
    # Threads share the latents, and NumPy's sorting leaves the interpreter free; samples are made as they are needed.
    scored = joblib.Parallel(n_jobs=joblib.cpu_count(), prefer="threads", pre_dispatch="n_jobs")(work)
    for concept_rows in scored:
        rows += concept_rows
    return rows


def _score(concept: str, latents_BN: NDArray, labels_B: NDArray, mode: str, seed: int) -> list[dict[str, Any]]:
    try:
        score, control = fms(latents_BN, labels_B, mode, seed), shuffled(latents_BN, labels_B, mode, seed)
    except UserError as error:
        raise UserError(f"concept {concept}: {error}") from None
    values: dict[str, Any] = measures(score)
    values |= {
        f"shuffled_{key}": value for key, value in measures(control).items() if key.startswith(("fms", "accs_0"))
    }
    values |= {"n_samples": score.n_samples, "n_positives": score.n_positives}
    values |= {f"root_{p}": latent for p, latent in enumerate(score.roots)}
    return [{"concept": concept, "measure": key, "value": float(value)} for key, value in values.items()]


def measures(score: FMS) -> dict[str, float]:
    """Return FMS@1, FMS@5 and their parts by the names of the results' table."""
    values = {"fms@1": score.at(1), "fms@5": score.at(5), "accs_0": score.accs[0], "global": score.global_}
    values |= {f"local@{p}": score.local(p) for p in range(1, N_REMOVED + 1)}
    return values | {f"accs_{p}": score.accs[p] for p in range(1, N_REMOVED + 1)}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Average over concepts, then over SAEs of the same name (seeds): mean, and standard deviation where several."""
    wanted = table[table["measure"].isin(HEADLINES)]
    per_sae = wanted.groupby(["name", "sae", "measure"], sort=False)["value"].mean()
    grouped = per_sae.groupby(["name", "measure"], sort=False)
    text = grouped.mean().map("{:.3f}".format)
    spread = grouped.std().map(lambda value: "" if np.isnan(value) else f" ± {value:.3f}")
    return (text + spread).unstack("measure")[HEADLINES]


def _print(table: pd.DataFrame, dataset: str, split: Any, mode: str) -> None:
    scored = table[table["measure"] == "fms@1"]
    n_concepts = scored["concept"].nunique()
    if n_concepts > 1:
        per_concept = scored.pivot_table(index="concept", columns="name", values="value", sort=False)
        print(f"FMS@1 per concept ({dataset} {split}, mode {mode})\n{per_concept.round(3).to_string()}\n")  # noqa: T201
    else:
        roots = table[table["measure"] == "root_0"].set_index("sae")["value"].astype(int)
        print(f"root latents: {', '.join(f'{sae}: {root}' for sae, root in roots.items())}\n")  # noqa: T201
    print(f"mean of {n_concepts} concept(s) ({dataset} {split}, mode {mode})\n{summary(table).to_string()}")  # noqa: T201
    if skipped := sorted(set(table[table["measure"] == "skipped"]["concept"])):
        print(f"left out, no positive token in this split: {', '.join(skipped)}")  # noqa: T201


def _figure(table: pd.DataFrame, dataset: str, mode: str) -> Figure:
    """Draw FMS@1 per concept, one bar per SAE name, with the seeds' standard deviation and the shuffled control."""
    scored = table[table["measure"] == "fms@1"]
    grouped = scored.groupby(["concept", "name"], sort=False)["value"]
    means, spreads = grouped.mean().unstack("name"), grouped.std().unstack("name").fillna(0.0)
    control = table[table["measure"] == "shuffled_fms@1"].groupby("concept", sort=False)["value"].mean()
    figure = Figure(figsize=(max(4.5, 0.5 * len(means) * len(means.columns) + 1.5), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(means.columns)
    places = np.arange(len(means))
    colours = ["#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"]  # told apart without colour vision
    for number, name in enumerate(means.columns):
        offset = (number - (len(means.columns) - 1) / 2) * width
        errors = spreads[name] if spreads[name].any() else None
        axes.bar(places + offset, means[name], width, yerr=errors, label=name, color=colours[number % len(colours)])
    axes.scatter(places, control.loc[means.index], marker="_", s=200, color="black", label="shuffled labels", zorder=3)
    axes.set_xticks(
        places, means.index, rotation=60 if len(means) > 3 else 0, ha="right" if len(means) > 3 else "center"
    )
    axes.set_ylabel("FMS@1")
    axes.set_title(f"{dataset}, mode {mode}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure
