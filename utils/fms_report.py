"""FMS of several SAEs side by side: measured per concept, stored, tabled and drawn. What eval/FMS_*.py share."""

import argparse
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from utils.activation_cache import ActivationCache, ActivationSplit
from utils.activation_store import cache_name
from utils.atomic import sha256_file
from utils.checkpoint import Checkpoint, load_checkpoint
from utils.cli import Parser, seed
from utils.errors import UserError
from utils.fms import FMS, MODES, N_REMOVED, fms, shuffled, why_not
from utils.fms_samples import balanced_rows, encode_rows, text_means
from utils.fms_tables import draw, show
from utils.models import default_device
from utils.results import Results
from utils.sae import SAE

Sample = tuple[str, NDArray[np.float32], NDArray[np.int8]]
Sampler = Callable[[SAE, ActivationSplit, list[str], int], Iterator[Sample]]


def add_arguments(parser: Parser) -> None:
    """Add the options that all FMS scripts share."""
    parser.add_argument(
        "--sae", action="append", required=True, metavar="CKPT", help="checkpoint folder; several compare"
    )
    parser.add_argument("--split", help="split to score on (default: test, or valid where there is no test)")
    parser.add_argument("--mode", choices=MODES, default="paper", help="how accuracies are taken, see utils/fms.py")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder of the cached activations")
    parser.add_argument("--out", type=Path, help="folder for results (default: results/FMS_<DATASET>-<split>-<mode>)")
    parser.add_argument("--seed", type=seed, default=0, help="of the chosen tokens, the halves and the shuffled labels")


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


def report(args: argparse.Namespace, dataset: str, samples: Sampler) -> tuple[pd.DataFrame, str]:
    """Measure every SAE of `args.sae` on a data set and write the results.

    Args:
        args: what `add_arguments` parsed.
        dataset: the data set's name.
        samples: `sentence_samples` or `token_samples`.

    Returns:
        The tidy table of the SAEs asked for, one row per SAE, concept and measure; and what to show on the screen.

    Raises:
        UserError: a bad checkpoint, no cache for it, a split it does not have, or no concept that can be scored.
    """
    checkpoints = [load_checkpoint(ref) for ref in dict.fromkeys(str(Path(ref)) for ref in args.sae)]
    caches = [_cache_of(checkpoint, dataset, args.data) for checkpoint in checkpoints]
    split = args.split or caches[0].evaluation_split()
    if split is None:
        raise UserError(f"{caches[0].folder} has no test or valid split; name one with --split")
    for cache in caches:
        cache.split(split)
    settings = {"dataset": dataset, "split": split, "mode": args.mode, "seed": args.seed}
    folder = args.out or Path("results") / f"FMS_{dataset}-{split}-{args.mode}"
    results = Results(folder, "fms", settings)
    for checkpoint, cache in zip(checkpoints, caches, strict=True):
        made_of = {
            "name": checkpoint.folder.name,
            "sae_seed": checkpoint.config["seed"],
            "sae_sha256": sha256_file(checkpoint.folder / "sae.safetensors"),
            "manifest_sha256": cache.checksum,
        }
        compute = _Measurement(checkpoint.sae, cache.split(split), cache.concepts, samples, args.mode, args.seed)
        results.piece(str(checkpoint.folder), made_of, compute)
    table = pd.DataFrame([row for label in results.labels for row in _rows(results, label, settings)])
    asked_for = table[table["sae"].isin([str(checkpoint.folder) for checkpoint in checkpoints])]
    title = f"{dataset} {split}, mode {args.mode}"
    results.write(table, draw(table, title), {name: version(name) for name in ("torch", "numpy", "numba")})
    return asked_for, f"{show(asked_for, title)}\nresults: {results.folder}/fms.csv, fms.json, fms.png"


def _rows(results: Results, label: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    about = {"sae": label, "name": Path(label).name} | {key: settings[key] for key in ("dataset", "split", "mode")}
    return [about | row for row in results.rows(label)]


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


class _Measurement:
    """Scores one SAE on every concept; gives tidy rows (concept, measure, value, note)."""

    def __init__(
        self, sae: SAE, split: ActivationSplit, concepts: list[str], samples: Sampler, mode: str, seed: int
    ) -> None:
        self.sae, self.split, self.concepts = sae, split, concepts
        self.samples, self.mode, self.seed = samples, mode, seed

    def __call__(self) -> list[dict[str, Any]]:
        """Raise UserError where no concept can be scored; a concept that cannot be is a row that says why."""
        samples = self.samples(self.sae.to(default_device()), self.split, self.concepts, self.seed)
        work = (joblib.delayed(_score)(*sample, self.mode, self.seed) for sample in samples)
        # Threads share the latents, and the compiled trees leave the interpreter free; samples are made when needed.
        scored = joblib.Parallel(n_jobs=joblib.cpu_count(), prefer="threads", pre_dispatch="n_jobs")(work)
        rows = [row for concept_rows in scored for row in concept_rows]
        if all(row["measure"] == "skipped" for row in rows):
            reasons = ", ".join(f"{row['concept']}: {row['note']}" for row in rows)
            raise UserError(f"split {self.split.name!r}: no concept can be scored ({reasons or 'there is none'})")
        return rows


def _score(concept: str, latents_BN: NDArray, labels_B: NDArray, mode: str, seed: int) -> list[dict[str, Any]]:
    if reason := why_not(labels_B, mode):
        return [{"concept": concept, "measure": "skipped", "value": 1.0, "note": reason}]
    score, control = fms(latents_BN, labels_B, mode, seed), shuffled(latents_BN, labels_B, mode, seed)[0]
    values: dict[str, float] = measures(score)
    values |= {f"shuffled_{key}": value for key, value in measures(control).items()}
    values |= {"n_samples": score.n_samples, "n_positives": score.n_positives}
    values |= {f"root_{p}": latent for p, latent in enumerate(score.roots)}
    return [{"concept": concept, "measure": key, "value": float(value), "note": ""} for key, value in values.items()]


def measures(score: FMS) -> dict[str, float]:
    """Return FMS@1, FMS@5 and their parts by the names of the results' table."""
    values = {"fms@1": score.at(1), "fms@5": score.at(5), "accs_0": score.accs[0], "global": score.global_}
    values |= {f"local@{p}": score.local(p) for p in range(1, N_REMOVED + 1)}
    return values | {f"accs_{p}": score.accs[p] for p in range(1, N_REMOVED + 1)}
