"""The claim: a guided SAE is more monosemantic than a vanilla one. Several seeds, all by the scripts users run.

Caches the activations, trains both SAEs for every seed, scores them and prints the README's table. Goes on where an
earlier run stopped.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from eval import FMS_PII, FMS_RTP_SP, Detection_PII, recipe
from utils.activation_cache import ActivationCache
from utils.cli import Parser, positive_int, run
from utils.detection_report import summary
from utils.fms import MODES
from utils.fms_tables import markdown
from utils.sentence_samples import SAMPLE_SETS
from utils.train_config import load_train_config

EXAMPLES = """\
examples:
  python benchmarks/guided_vs_vanilla.py PII_synth
  python benchmarks/guided_vs_vanilla.py SP --source FOLDER
  python benchmarks/guided_vs_vanilla.py RTP --source rtp.jsonl
  python benchmarks/guided_vs_vanilla.py SP --config llama3_SAE/SAE_config/smollm2-l1728-b15-k144-SP-relu.json
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, do the work and print a Markdown table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "dataset", metavar="DATASET", nargs="?", choices=recipe.MAX_TEXTS, default="PII_synth", help="or SP, RTP"
    )
    parser.add_argument("--source", help="where the texts come from, as in create_dataset.py")
    parser.add_argument("--config", type=Path, help="another run config for the same activations")
    parser.add_argument("--seeds", type=positive_int, default=3, help="number of seeds, from 0")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    recipe.cache(args.dataset, args.source)
    config = args.config or recipe.shipped_config(args.dataset)
    refs = [ref for seed in range(args.seeds) for ref in recipe.train_pair(config, seed, Path("ckpt") / f"seed{seed}")]
    saes = [word for ref in refs for word in ("--sae", ref)]
    sample_sets = SAMPLE_SETS if args.dataset == "RTP" else SAMPLE_SETS[:1]
    for mode, samples in ((mode, samples) for mode in MODES for samples in sample_sets):
        if args.dataset == "PII_synth":
            table = FMS_PII.main(["--dataset", args.dataset, *saes, "--mode", mode])
        else:
            table = FMS_RTP_SP.main([args.dataset, *saes, "--mode", mode, "--samples", samples])
        print(f"\n{markdown(table, f'{args.dataset}, {samples}, {mode} mode')}\n")
    if args.dataset == "PII_synth":
        print(f"\n{summary(Detection_PII.main(saes)).to_string()}\n")
    manifest = ActivationCache(load_train_config(config).ds_path).manifest
    n_tokens = {split: entry["tokens"] for split, entry in manifest["splits"].items()}
    print(f"{args.seeds} seeds; tokens {n_tokens}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    run(main)
