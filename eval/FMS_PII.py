"""Score how well, and how solely, one latent stands for a kind of personal data, token by token (FMS)."""

from collections.abc import Sequence

import pandas as pd

from utils.cli import Parser, run
from utils.fms_report import add_arguments, report, token_samples

EXAMPLES = """\
example:
  python eval/FMS_PII.py --sae ckpt/smollm2-l1728-b15-k144-PII_synth_s0 --sae ckpt/smollm2-l1728-b15-k144-PII_synth_s1

For each concept all its tokens are compared with as many others. SAEs of the same name in different folders count as
seeds: the table gives their mean and standard deviation.
"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and score the SAEs; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="PII_synth", help="PII_synth, or your own with token-level labels")
    add_arguments(parser)
    args = parser.parse_args(argv)
    table, text = report(args, args.dataset, token_samples)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
