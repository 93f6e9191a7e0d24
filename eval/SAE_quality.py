"""Measure SAEs as SAEs: sparsity, reconstruction, dead latents, and what the language model loses by them."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from utils.cli import Parser, positive_int, run
from utils.evaluated import SAE_HELP, Evaluated, add_sae_arguments, evaluated, model_of_cache, texts_of
from utils.models import default_device
from utils.results import Results
from utils.sae_loading import get_model
from utils.sae_quality import activation_quality, language_model_quality

EXAMPLES = f"""\
examples:
  python eval/SAE_quality.py --sae ckpt/smollm2-l1728-b15-k144-SP_s1 --dataset SP
  python eval/SAE_quality.py --sae sparsify:EleutherAI/sae-llama-3-8b-32x/layers.10 --dataset Wiki_small --model llama3

{SAE_HELP}"""
_BATCH_SIZE = 1024
_SHOWN = ("l0", "fvu", "cosine", "dead_latents", "ce_recovered", "kl_recovered")


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and measure; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", required=True, help="whose activations and texts are used")
    add_sae_arguments(parser, "SAE_quality_<DATASET>")
    parser.add_argument("--model-path", help="local model folder")
    parser.add_argument("--max-texts", type=positive_int, default=200, help="texts that the language model predicts")
    args = parser.parse_args(argv)

    settings: dict[str, Any] = {"dataset": args.dataset, "split": args.split, "max_texts": args.max_texts}
    results = Results(args.out or Path("results") / f"SAE_quality_{args.dataset}", "quality", settings)
    subjects = evaluated(args, args.dataset, by_concept=False)
    for subject in subjects:
        made_of = subject.made_of | {"model_path": args.model_path}
        results.piece(subject.label, made_of, _Measurement(args, subject))
    table = pd.DataFrame([{"sae": label} | row for label in results.labels for row in results.rows(label)])
    results.write(table, {"quality": _draw(table)}, {name: version(name) for name in ("torch", "transformers")})
    own = table[table["sae"].isin([subject.label for subject in subjects])]
    print(own.pivot_table(index="sae", columns="measure", values="value", sort=False).round(4).to_string())
    print(f"results: {results.folder}/quality.csv, quality.json, quality.png, quality.svg")
    return own


class _Measurement:
    """One SAE on one cache and its language model; gives tidy rows."""

    def __init__(self, args: Any, subject: Evaluated) -> None:
        self.args, self.subject = args, subject

    def __call__(self) -> list[dict[str, Any]]:
        """Measure."""
        loaded, cache = self.subject.loaded, self.subject.cache
        split = self.subject.split_name(self.args.split)
        values = activation_quality(loaded.sae.to(default_device()), cache.split(split), _BATCH_SIZE)
        data = texts_of(cache, self.args.data)
        texts = [text.text for text in data.splits[split][: self.args.max_texts]]
        manifest = cache.manifest
        model_of_cache(cache, self.args.model_path)
        model, tokenizer = get_model(
            manifest["model"],
            loaded.origin["ref"],
            model_path=self.args.model_path,
            block=manifest["block"],
            site=manifest["site"],
        )
        values |= language_model_quality(model.to(default_device()), tokenizer, texts)
        about = {"dataset": self.args.dataset, "split": split, "format": loaded.format}
        # JSON has no NaN: what cannot be told is left out.
        return [about | {"measure": key, "value": value} for key, value in values.items() if math.isfinite(value)]


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
