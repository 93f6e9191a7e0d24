"""Score how well, and how solely, one latent stands for a kind of personal data, token by token (FMS)."""

from collections.abc import Sequence

import pandas as pd

from utils.cli import Parser, run
from utils.evaluated import SAE_HELP
from utils.fms_report import add_arguments, report, token_samples

EXAMPLES = f"""\
examples:
  python eval/FMS_PII.py --sae ckpt/smollm2-l1728-b15-k144-PII_synth_s0 --sae ckpt/smollm2-l1728-b15-k144-PII_synth_s1
  python eval/FMS_PII.py --sae "ckpt/smollm2-l1728-b{{block:02}}-k144-PII_synth_s1" --block 3 9 15 21 27

For each concept all its tokens are compared with as many others. SAEs of the same name in different folders count as
seeds: the table gives their mean and standard deviation.

{SAE_HELP}"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and score the SAEs; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="PII_synth", help="PII_synth, or your own with token-level labels")
    add_arguments(parser, "FMS_<DATASET>-<split>-<mode>")
    args = parser.parse_args(argv)
    table, text = report(args, args.dataset, token_samples, f"FMS_{args.dataset}", {"samples": "tokens"})
    print(text)
    return table


if __name__ == "__main__":
    run(main)
