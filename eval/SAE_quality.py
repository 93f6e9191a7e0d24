"""Measure SAEs as SAEs: sparsity, reconstruction, dead latents, and what the language model loses by them."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from create_data.create_dataset import ensure_text
from utils.activation_cache import ActivationCache
from utils.activation_store import cache_name
from utils.cli import Parser, positive_int, run, seed
from utils.errors import UserError
from utils.models import default_device
from utils.results import Results
from utils.sae_loading import FORMATS, LoadedSAE, get_model, load_sae
from utils.sae_quality import activation_quality, language_model_quality

EXAMPLES = f"""\
examples:
  python eval/SAE_quality.py --sae ckpt/smollm2-l1728-b15-k144-SP_s1 --dataset SP
  python eval/SAE_quality.py --sae sparsify:EleutherAI/sae-llama-3-8b-32x/layers.10 --dataset Wiki_small --model llama3

An SAE is a checkpoint folder of ours, or format:location with one of the formats {", ".join(FORMATS)}.
The cached activations of its block must be there (create_data/act_dataset.py).
"""
_BATCH_SIZE = 1024
_SHOWN = ("l0", "fvu", "cosine", "dead_latents", "ce_recovered", "kl_recovered")


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and measure; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--sae", action="append", required=True, metavar="REF", help="may be given several times")
    parser.add_argument("--dataset", required=True, help="whose activations and texts are used")
    parser.add_argument("--split", help="its test or validation split where not given")
    parser.add_argument("--model", help="the SAE's language model, where its format does not tell a name of ours")
    parser.add_argument("--model-path", help="local model folder")
    parser.add_argument("--block", type=int, help="the SAE's block, where its format does not tell")
    parser.add_argument("--site", help="likewise")
    parser.add_argument("--max-texts", type=positive_int, default=200, help="texts that the language model predicts")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder with texts and activations")
    parser.add_argument("--out", type=Path, help="results folder")
    parser.add_argument("--seed", type=seed, default=0, help="that the texts were made with")
    args = parser.parse_args(argv)

    settings: dict[str, Any] = {"dataset": args.dataset, "split": args.split, "max_texts": args.max_texts}
    results = Results(args.out or Path("results") / f"SAE_quality_{args.dataset}", "quality", settings)
    for ref in dict.fromkeys(args.sae):
        loaded = load_sae(ref)
        measurement = _Measurement(args, ref, loaded)
        results.piece(ref, measurement.made_of, measurement)
    table = pd.DataFrame([{"sae": label} | row for label in results.labels for row in results.rows(label)])
    results.write(table, _draw(table), {name: version(name) for name in ("torch", "transformers")})
    own = table[table["sae"].isin(args.sae)]
    print(own.pivot_table(index="sae", columns="measure", values="value", sort=False).round(4).to_string())
    print(f"results: {results.folder}/quality.csv, quality.json, quality.png")
    return own


class _Measurement:
    """One SAE on one cache and its language model; gives tidy rows."""

    def __init__(self, args: Any, ref: str, loaded: LoadedSAE) -> None:
        self.args, self.ref, self.loaded = args, ref, loaded
        self.model_name: str = args.model or loaded.origin.get("model") or ""
        self.block = args.block if args.block is not None else loaded.origin.get("block")
        self.site = args.site or loaded.origin.get("site")
        if not self.model_name or self.block is None or self.site is None:
            raise UserError(f"{ref}: does not tell its model, block and site; give --model, --block and --site")
        self.cache = ActivationCache(args.data / cache_name(self.model_name, args.dataset, self.block, self.site))
        n_inputs = loaded.sae.config.n_inputs
        if self.cache.d_model != n_inputs:
            raise UserError(f"{ref}: takes {n_inputs} inputs, but {self.cache.folder} is {self.cache.d_model} wide")

    @property
    def made_of(self) -> dict[str, Any]:
        """What decides the rows."""
        return {
            "sae_sha256": self.loaded.fingerprint(),
            "manifest_sha256": self.cache.checksum,
            "model_path": self.args.model_path,
        }

    def __call__(self) -> list[dict[str, Any]]:
        """Measure."""
        split = self.args.split or self.cache.evaluation_split()
        if split is None:
            raise UserError(f"{self.cache.folder} has no test or validation split; name one with --split")
        values = activation_quality(self.loaded.sae.to(default_device()), self.cache.split(split), _BATCH_SIZE)
        data = ensure_text(self.args.dataset, self.args.data / "text", None, self.args.seed)
        if data.fingerprint() != self.cache.manifest["dataset_fingerprint"]:
            raise UserError(f"{self.cache.folder} was made from other texts than {self.args.data / 'text' / data.name}")
        texts = [text.text for text in data.splits[split][: self.args.max_texts]]
        model, tokenizer = get_model(
            self.model_name, self.ref, model_path=self.args.model_path, block=self.block, site=self.site
        )
        values |= language_model_quality(model.to(default_device()), tokenizer, texts)
        about = {"dataset": self.args.dataset, "split": split, "format": self.loaded.format}
        return [about | {"measure": key, "value": value} for key, value in values.items()]


def _draw(table: pd.DataFrame) -> Figure:
    """Draw the main measures, one panel each, one bar per SAE."""
    figure = Figure(figsize=(2.2 * len(_SHOWN), 3.2), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(_SHOWN)), _SHOWN, strict=True):
        own = table[table["measure"] == measure]
        axes.bar(range(len(own)), own["value"], color="#0072B2")
        axes.set_xticks(range(len(own)), [Path(sae).name for sae in own["sae"]], rotation=60, ha="right", fontsize=7)
        axes.set_title(measure, loc="left", fontsize=9)
    return figure


if __name__ == "__main__":
    run(main)
