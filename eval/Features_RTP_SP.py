"""Show what the latent of a style or of toxicity does: its value per token and per text, against labels and scores."""

from collections.abc import Sequence

import pandas as pd

from utils.cli import Parser, run
from utils.evaluated import SAE_HELP
from utils.feature_report import add_arguments, report

EXAMPLES = f"""\
examples:
  python eval/Features_RTP_SP.py SP --sae ckpt/smollm2-l1728-b15-k144-SP_s0 --sae ckpt/smollm2-l1728-b15-k144-SP_s1
  python eval/Features_RTP_SP.py RTP --sae ckpt/smollm2-l1728-b15-k144-RTP_s1

The concept's latent is the one it was tied to; of an SAE that was not guided, the best single latent (the root of the
tree of FMS) on the training split. Beside the tables: tokens.html, texts coloured by the latent; in pieces/, the values
of all tokens and texts (Parquet).

{SAE_HELP}"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and measure; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", help="SP, RTP, RTP_split, or your own with labels of whole texts")
    add_arguments(parser, "Features_<DATASET>-<split>")
    args = parser.parse_args(argv)
    table, text = report(args, args.dataset, f"Features_{args.dataset}", tokens=False)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
