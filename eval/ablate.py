"""Recipes of guidance side by side: trained on several data sets and seeds, and measured in every way."""

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from eval import FMS_PII, FMS_RTP_SP, Detection_PII, SAE_quality, recipe
from train import train_SAE
from utils.ablation import pareto, summary
from utils.activation_cache import ActivationCache
from utils.atomic import atomic_file, write_json
from utils.cache_plan import choose_texts
from utils.cli import Parser, positive_int, run
from utils.errors import UserError
from utils.evaluated import texts_of
from utils.labelled_text import Text
from utils.leakage import leakage
from utils.models import default_device
from utils.recipes import RECIPES, recipe_config, recipe_options, training_flops
from utils.results import Results, only_process
from utils.sae_loading import get_model, load_sae
from utils.steered_probe import steered_probe
from utils.train_config import SAE_Train_config, load_train_config

DATASETS = ("SP", "RTP_split", "PII_synth")
DEFAULT = ("vanilla", "paper", "clear", "paper-third", "clear-third")
_FMS = {"fms@1": "fms@1", "fms@5": "fms@5", "accs_0": "accs_0", "local@1": "local@1", "global": "global"}
_QUALITY = {"reconstruction_loss": "nmse", "fvu": "fvu", "ce_recovered": "ce_recovered", "dead_latents": "dead_latents"}
EXAMPLES = """\
examples:
  python eval/ablate.py PII_synth
  python eval/ablate.py SP RTP_split PII_synth --source SP=FOLDER --source RTP_split=rtp.jsonl
  python eval/ablate.py SP --recipe paper clear clear-no-erase clear-no-gate clear-no-warm control-labels --seeds 1

All recipes of a data set share its activations, the shipped config, and the training FLOPs: where a part costs more,
fewer epochs are trained. FMS is taken on held-out texts, in paper and in held-out mode. What was trained or measured is
not done again when the same command is given again.
"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line, train, measure, and write table and figure; return the table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("datasets", metavar="DATASET", nargs="*", help=f"{', '.join(DATASETS)} (default: PII_synth)")
    where = "where a data set's texts come from, as in create_dataset.py"
    parser.add_argument("--source", action="append", default=[], metavar="DATASET=PATH", help=where)
    which = ", ".join(f"{name} ({what})" for name, what in RECIPES.items())
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=list(DEFAULT), metavar="RECIPE", help=which)
    parser.add_argument("--seeds", type=positive_int, default=3, help="number of seeds, from 0")
    parser.add_argument("--config", type=Path, help="another run config than the shipped one, for one data set")
    parser.add_argument(
        "--max-texts", type=positive_int, help="texts of each split (default: as in the shipped recipe)"
    )
    parser.add_argument("--quality-texts", type=positive_int, default=50, help="texts that the language model predicts")
    parser.add_argument("--probe-texts", type=positive_int, default=100, help="texts that are steered for a probe")
    parser.add_argument("--model-path", help="local model folder")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder with texts and activations")
    parser.add_argument("--out", type=Path, default=Path("results/ablation"), help="folder for results")
    args = parser.parse_args(argv)
    datasets = recipe.chosen(args.datasets, DATASETS)
    if args.config and len(datasets) > 1:
        raise UserError("--config is for one data set; name one")
    for dataset, name in itertools.product(datasets, args.recipe):
        recipe_options(
            name, whole_texts=dataset != "PII_synth"
        )  # refuses what makes no sense before anything is trained
    sources = recipe.sources(args.source, datasets)
    parts = [_Ablation(args, dataset, sources.get(dataset)).rows() for dataset in datasets]
    with only_process(args.out):
        results = Results(args.out, "ablation", {"quality_texts": args.quality_texts})
        for row in (row for part in parts for row in part):
            results.piece(row["ref"], row, partial(list, [row]))
        table = pd.DataFrame([row for ref in results.labels for row in results.rows(ref)])  # of earlier commands, too
        text = summary(table)
        results.write(table, {"pareto": pareto(table)}, {name: version(name) for name in ("torch", "concept-erasure")})
        with atomic_file(args.out / "ablation.md") as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{text}\nresults: {args.out}/ (ablation.csv, ablation.json, ablation.md, pareto.png)")
    return table


@dataclass(frozen=True)
class _Ablation:
    """All recipes and seeds on one data set."""

    args: argparse.Namespace
    dataset: str
    source: str | None

    def rows(self) -> list[dict[str, Any]]:
        """Train and measure; return one row for each recipe and seed."""
        args = self.args
        if args.config is None:
            recipe.cache(self.dataset, self.source, data=args.data, max_texts=args.max_texts)
        shipped = recipe.shipped_config(self.dataset)
        paper = args.config or recipe.config_for(shipped, self.dataset, args.data, self._out)
        runs = [self._trained(name, paper, seed) for name in args.recipe for seed in range(args.seeds)]
        refs = [word for run in runs for word in ("--sae", run["ref"])]
        measured: dict[str, dict[str, float]] = {run["ref"]: {} for run in runs}
        for mode in ("paper", "heldout"):
            table = self._fms([*refs, "--mode", mode, "--out", str(self._out / f"fms-{mode}")])
            _collect(measured, table, "sae", {key: f"{name} {mode}" for key, name in _FMS.items()})
            _collect(measured, table, "sae", {"shuffled_fms@1": f"shuffled fms@1 {mode}"})
        model = ["--model-path", args.model_path] if args.model_path else []
        shared = ["--dataset", self.dataset, "--data", str(args.data), *refs, *model]
        texts = ["--max-texts", str(args.quality_texts)]
        table = SAE_quality.main([*shared, *texts, "--out", str(self._out / "quality")])
        _collect(measured, table, "sae", _QUALITY)
        if self.dataset == "PII_synth":
            bare = ["--no-probes", "--no-presidio", "--out", str(self._out / "detection")]
            table = Detection_PII.main([*shared, *bare])
            _collect(measured, table[table["class"] == "all"], "detector", {"f1_micro": "detection f1"})
        return [run | measured[run["ref"]] | self._probes(run["ref"]) for run in runs]

    @property
    def _out(self) -> Path:
        return Path(self.args.out) / self.dataset

    @property
    def _whole_texts(self) -> bool:
        return self.dataset != "PII_synth"

    def _trained(self, name: str, paper: Path, seed: int) -> dict[str, Any]:
        """Train one SAE; return what is known of the run."""
        paper_config = load_train_config(paper)
        cache = ActivationCache(paper_config.ds_path)
        n_tokens, n_concepts = len(cache.split("train")), 0 if name == "vanilla" else len(cache.concepts)
        n_rows = cache.manifest["splits"]["train"]["texts"] if self._whole_texts else n_tokens
        sizes = {"n_rows": n_rows, "n_tokens": n_tokens, "n_concepts": n_concepts}
        config = recipe_config(name, paper_config, whole_texts=self._whole_texts, **sizes)
        path = self._out / "configs" / f"{paper.stem}-{name}.json"
        write_json(path, {key: value for key, value in config.to_dict().items() if value is not None})
        out = Path(self.args.out) / "ckpt" / f"seed{seed}"
        scaling = "0" if name == "vanilla" else "1"
        train_SAE.main([str(path), "--cond-loss-scaling", scaling, "--seed", str(seed), "--out", str(out)])
        ref = out / f"{path.stem}_s{scaling}"
        return {
            "dataset": self.dataset,
            "recipe": name,
            "seed": seed,
            "ref": str(ref),
            "epochs": config.max_epochs,
            "training FLOPs": training_flops(config, **sizes),
            "training seconds": _seconds(ref, config),
        }

    def _fms(self, argv: list[str]) -> pd.DataFrame:
        argv = [*argv, "--data", str(self.args.data)]
        if self._whole_texts:
            return FMS_RTP_SP.main([self.dataset, *argv])
        return FMS_PII.main(["--dataset", self.dataset, *argv])

    def _probes(self, ref: str) -> dict[str, float]:
        """Measure what leaks into other latents and, of concepts of whole texts, what steering does further on."""
        loaded = load_sae(ref)
        cache = ActivationCache(load_train_config(self._out / "configs" / f"{Path(ref).name[:-3]}.json").ds_path)
        results = Results(self._out / "probes", "probes", {"dataset": self.dataset, "texts": self.args.probe_texts})
        split = cache.evaluation_split() or "train"

        def measure() -> list[dict[str, Any]]:
            first = len(cache.concepts) if loaded.is_guided else 0
            found = {"leakage": leakage(loaded.sae, cache, split, first=first, whole_texts=self._whole_texts)}
            if self._whole_texts and loaded.is_guided:
                data = texts_of(cache, self.args.data)
                n = self.args.probe_texts
                train, test = (_chosen(data.splits[name], most) for name, most in (("train", 2 * n), (split, n)))
                model, tokenizer = get_model(cache.manifest["model"], ref, model_path=self.args.model_path)
                found |= steered_probe(model.to(default_device()), tokenizer, 0, train, test)
            return [{key: value for key, value in found.items() if math.isfinite(value)}]

        results.piece(ref, {"sae_sha256": loaded.fingerprint()}, measure)
        return {key: float(value) for key, value in results.rows(ref)[0].items()}


def _chosen(texts: Sequence[Text], most: int) -> list[Text]:
    return [texts[i] for i in choose_texts(len(texts), most, seed=0)]


def _collect(measured: dict[str, dict[str, float]], table: pd.DataFrame, by: str, names: dict[str, str]) -> None:
    """Add each SAE's measures, averaged over concepts."""
    own = table[table["measure"].isin(names)]
    means = own.groupby([by, "measure"])["value"].mean().reset_index()
    for ref, measure, value in means.itertuples(index=False):
        if ref in measured:
            measured[ref][names[measure]] = float(value)


def _seconds(ref: Path, config: SAE_Train_config) -> float:
    """Return how long the steps took, the start left out."""
    history = pd.read_csv(ref / "history.csv")
    steps = history["step"].diff().fillna(history["step"])
    return float((steps * config.batch_size / history["tokens_per_second"]).sum())


if __name__ == "__main__":
    run(main)
