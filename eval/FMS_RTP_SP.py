"""Score how well, and how solely, one latent, averaged over a text, stands for its style or toxicity (FMS)."""

from collections.abc import Sequence

import pandas as pd

from utils.cli import Parser, run
from utils.fms_report import add_arguments, report, sentence_samples

EXAMPLES = """\
example:
  python eval/FMS_RTP_SP.py SP --sae ckpt/smollm2-l1728-b15-k144-SP_s0 --sae ckpt/smollm2-l1728-b15-k144-SP_s1

The activations must be cached: datasets_v2/<model>-<DATASET>-B<block>-<site>, with the SAE's model, block and site.
SAEs of the same name in different folders count as seeds: the table gives their mean and standard deviation.
"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and score the SAEs; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", help="SP, RTP, RTP_split, or your own with labels of whole texts")
    add_arguments(parser)
    args = parser.parse_args(argv)
    table, text = report(args, args.dataset, sentence_samples)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
