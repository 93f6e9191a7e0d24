"""Cache the activations of a language model, token by token, together with the concepts each token carries."""

import time
from collections.abc import Sequence
from pathlib import Path

from create_data.create_dataset import DATASETS, check_name, ensure_text
from utils.activation_cache import ActivationCache
from utils.activation_store import DTYPES, cache_name
from utils.cache_repair import verify
from utils.caching import cache_activations
from utils.cli import Parser, positive_int, run, seed
from utils.distributed import rank
from utils.hooks import SITES, check_block, check_site
from utils.models import DEVICE_MAPS, LOAD_DTYPES, MODELS, find_model, load_config

EXAMPLES = """\
examples:
  python create_data/act_dataset.py PII_synth 15 smollm2 block --max-texts 500
  python create_data/act_dataset.py SP 25 llama3 block --source FOLDER
  python create_data/act_dataset.py RTP 3 mymodel mlp --model-path DIR --source rtp.jsonl

An interrupted run goes on when the same command is given again. Several GPUs share the work, shard by shard, with
  torchrun --nproc-per-node 2 create_data/act_dataset.py SP 25 llama3 block
or, where the model is too large for one, hold it together with --device-map auto. On a Determined cluster:
  det experiment create create_data/act_dataset.yaml .
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and make one cache."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", help=f"one of {', '.join(DATASETS)}, or your own in OUT/text")
    parser.add_argument("block", metavar="BLOCK", type=int, help="decoder block, counted from 0")
    parser.add_argument("model", metavar="MODEL", help=f"one of {', '.join(MODELS)}; any name with --model-path")
    parser.add_argument(
        "site", metavar="SITE", help=f"{', '.join(SITES)}: the output of the whole block, its MLP, its attention"
    )
    parser.add_argument("--source", type=Path, help="where the texts come from, as in create_dataset.py")
    parser.add_argument("--out", type=Path, default=Path("datasets_v2"), help="folder for texts and activations")
    parser.add_argument("--model-path", help="local model folder, instead of the hub")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the stored activations")
    parser.add_argument("--max-texts", type=positive_int, help="at most so many texts of each split, chosen at random")
    parser.add_argument(
        "--batch-tokens", type=positive_int, help="padded tokens of a batch (1,024 on CPU, 16,384 on GPU)"
    )
    parser.add_argument(
        "--load-dtype", choices=LOAD_DTYPES, help="what the model computes in (float32 on CPU, its weights' on GPU)"
    )
    parser.add_argument("--device-map", choices=DEVICE_MAPS, help="spread the model over this machine's GPUs")
    parser.add_argument(
        "--seed", type=seed, default=0, help="for generated texts, splits and the choice of --max-texts"
    )
    check = parser.add_mutually_exclusive_group()
    check.add_argument("--verify", action="store_true", help="only check the checksums of a finished cache")
    check.add_argument("--repair", action="store_true", help="compute the damaged shards of a finished cache anew")
    args = parser.parse_args(argv)

    if args.verify:
        folder = args.out / cache_name(args.model, args.dataset, args.block, args.site)
        print(f"{folder}: all {verify(folder)} shards are whole")
        return
    start = time.perf_counter()
    check_site(args.site)
    check_name(args.dataset, args.out / "text")
    source = find_model(args.model, args.model_path)
    check_block(args.block, load_config(source).num_hidden_layers)
    data = ensure_text(args.dataset, args.out / "text", args.source, args.seed)
    folder = cache_activations(
        data,
        source,
        args.block,
        args.site,
        args.out,
        dtype=args.dtype,
        max_texts=args.max_texts,
        batch_tokens=args.batch_tokens,
        load_dtype=args.load_dtype,
        device_map=args.device_map,
        seed=args.seed,
        repair_damage=args.repair,
    )
    if rank() > 0:
        return
    for split, entry in ActivationCache(folder).manifest["splits"].items():
        print(f"{split}: {entry['tokens']:,} tokens of {entry['texts']:,} texts")
    print(f"{folder} is ready after {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run(main)
