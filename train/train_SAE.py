"""Train a sparse autoencoder on cached activations, guided by their labels or not."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from utils.activation_cache import ActivationCache
from utils.cli import Parser, non_negative_float, positive_int, run, seed
from utils.distributed import rank
from utils.errors import UserError
from utils.run_log import CURVES
from utils.train_config import PRETRAINED, check_against_cache, load_train_config
from utils.training import train

EXAMPLES = """\
examples:
  python train/train_SAE.py llama3_SAE/SAE_config/smollm2-l1728-b15-k144-SP.json                         # guided, _s1
  python train/train_SAE.py llama3_SAE/SAE_config/smollm2-l1728-b15-k144-SP.json --cond-loss-scaling 0   # vanilla, _s0

An interrupted run goes on when the same command is given again; a higher --max-epochs trains a finished one further.
"""
_SHOWN = ("epoch", "loss", "fvu", "l0", "dead_latents", "concept_auroc", "concept_accuracy", "tokens_per_second")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train one SAE."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("config", metavar="CONFIG.json", type=Path, help="the run config, see */SAE_config/")
    parser.add_argument(
        "--cond-loss-scaling",
        type=non_negative_float,
        default=1.0,
        help="0: vanilla SAE; s > 0: guided, positive labels weighted by s",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("ckpt"), help="folder for checkpoints, unless the config names one"
    )
    parser.add_argument("--max-epochs", type=positive_int, help="instead of the config's number")
    parser.add_argument("--seed", type=seed, default=0, help="of the weights and the order of the data")
    args = parser.parse_args(argv)

    start = time.perf_counter()
    config = load_train_config(args.config)
    if config.pretrained:
        ref = config.ds_path.removeprefix(PRETRAINED)
        raise UserError(f"{args.config}: a pretrained SAE, not to be trained; load it with load_sae({ref!r})")
    if args.max_epochs is not None:
        config = dataclasses.replace(config, max_epochs=args.max_epochs)
    cache = ActivationCache(config.ds_path)
    check_against_cache(args.config, config, cache)
    out = Path(config.ckpt_path) if config.ckpt_path else args.out
    folder = out / f"{args.config.stem}_s{args.cond_loss_scaling:g}"
    metrics = train(config, cache, folder, cond_loss_scaling=args.cond_loss_scaling, seed=args.seed)
    if rank() == 0:
        print("  ".join(f"{key}={value:.4g}" for key, value in metrics.items() if key.endswith(_SHOWN)))
        print(f"{folder} is ready after {time.perf_counter() - start:.0f} s; see {CURVES} there")


if __name__ == "__main__":
    run(main)
