"""The whole method in one command: cache activations, train a vanilla and a guided SAE, measure both.

Everything is computed here: texts with made-up personal data, activations of SmolLM2-135M (block 15), two SAEs, FMS for
25 concepts. A second run goes on from what is there.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from eval import FMS_PII, recipe
from utils.cli import Parser, positive_int, run
from utils.models import find_model

DATASET = "PII_synth"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run the four steps."""
    parser = Parser(__doc__ or "", "example:\n  python eval/demo.py --out demo")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for data, checkpoints and results")
    parser.add_argument(
        "--max-texts", type=positive_int, default=1000, help="texts for training, and as many for testing"
    )
    parser.add_argument("--max-epochs", type=positive_int, help="instead of the config's number")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    data, checkpoints = args.out / "datasets_v2", args.out / "ckpt"

    _step("1/4  the language model: SmolLM2-135M-Instruct, fetched once", lambda: find_model(recipe.MODEL))

    _step(
        f"2/4  texts with made-up personal data, and the activations of block {recipe.BLOCK}",
        lambda: recipe.cache(DATASET, data=data, max_texts=args.max_texts),
    )

    config = recipe.config_for(recipe.shipped_config(DATASET), DATASET, data, args.out)
    more = ["--max-epochs", str(args.max_epochs)] if args.max_epochs else []
    _step(
        "3/4  two sparse autoencoders: vanilla (_s0), and guided by the labels (_s1)",
        lambda: recipe.train_pair(config, 0, checkpoints, *more),
    )

    saes = [argument for s in (0, 1) for argument in ("--sae", str(checkpoints / f"{config.stem}_s{s}"))]
    scoring = ["--dataset", DATASET, *saes, "--data", str(data), "--out", str(args.out / "results")]
    _step("4/4  FMS: how well, and how solely, one latent stands for each concept", lambda: FMS_PII.main(scoring))

    print(f"\ndone in {time.perf_counter() - start:.0f} s; activations, SAEs and results lie in {args.out}/")


def _step(title: str, work: Callable[[], object]) -> None:
    print(f"\n== {title}", flush=True)
    start = time.perf_counter()
    work()
    print(f"-- {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    run(main)
