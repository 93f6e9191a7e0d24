"""Run configs made from a grid: one JSON per block, factor and k, for models whose shape is known."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from utils.activation_store import cache_name
from utils.atomic import read_json, write_json
from utils.cli import Parser, positive_int
from utils.errors import UserError
from utils.hooks import SITES, check_block
from utils.models import MODELS
from utils.recipes import clear_options
from utils.sae import ACTIVATIONS
from utils.train_config import SAE_Train_config

_KEYS = ("batch_size", "ds_path", "factor", "k", "lr", "max_epochs", "n_inputs", "activation")


def generate(folder: Path, models: Sequence[str], description: str, argv: Sequence[str] | None = None) -> list[Path]:
    """Parse a command line and write the configs of its grid.

    Args:
        folder: where they go.
        models: the short names to choose from; the first is the default.
        description: for `--help`.
        argv: the command line.

    Returns:
        The files, also those that were there already with the same contents.

    Raises:
        UserError: an impossible value, or a file that is there with other contents; then nothing is written.
    """
    parser = Parser(description, f"example:\n  python {folder.parent.name}/gen_config.py --blocks 11 25 --k 512 2048\n")
    parser.add_argument("--model", choices=models, default=models[0], help="the language model")
    parser.add_argument("--blocks", type=int, nargs="+", default=[11], help="decoder blocks, counted from 0")
    parser.add_argument("--factors", type=positive_int, nargs="+", default=[6], help="latents per input")
    parser.add_argument("--k", type=positive_int, nargs="+", default=[2048], help="latents kept per token")
    parser.add_argument("--dataset", default="RTP_split", help="whose activations it is trained on")
    parser.add_argument("--site", choices=SITES, default="block", help="of the activations")
    parser.add_argument("--activation", choices=ACTIVATIONS, default="topk-sigmoid", help="of the latents")
    parser.add_argument("--batch-size", type=positive_int, default=2048, help="tokens of a step")
    parser.add_argument("--lr", type=float, default=1e-5, help="Adam's learning rate")
    parser.add_argument("--max-epochs", type=positive_int, default=100, help="passes over the data")
    recipe = "paper, or clear (docs/recipes.md), which adds its keys and its name"
    parser.add_argument("--recipe", choices=("paper", "clear"), default="paper", help=recipe)
    parser.add_argument("--suffix", default="", help="added to the file names after a '-', such as the data set")
    parser.add_argument("--out", type=Path, default=folder, help="folder for the files")
    args = parser.parse_args(argv)

    spec = MODELS[args.model]
    files: dict[Path, dict[str, object]] = {}
    for block, factor, k in product(args.blocks, args.factors, args.k):
        check_block(block, spec.n_blocks)
        config = SAE_Train_config(
            batch_size=args.batch_size,
            ds_path=f"datasets_v2/{cache_name(args.model, args.dataset, block, args.site)}",
            factor=factor,
            k=k,
            lr=args.lr,
            max_epochs=args.max_epochs,
            n_inputs=spec.d_model,
            activation=args.activation,
        )
        more = clear_options(args.dataset) if args.recipe == "clear" else {}
        config = replace(config, **more)
        suffix = "-".join(part for part in (args.suffix, "clear" if more else "") if part)
        name = f"{args.model}-l{config.sae.n_latents}-b{block:02}-k{k}" + (f"-{suffix}" if suffix else "")
        files[args.out / f"{name}.json"] = {key: getattr(config, key) for key in (*_KEYS, *more)}
    for path, values in files.items():
        if path.exists() and read_json(path) != values:
            raise UserError(f"{path}: is there with other contents; remove it or choose another --suffix or --out")
    for path, values in files.items():
        write_json(path, values)
    return list(files)
