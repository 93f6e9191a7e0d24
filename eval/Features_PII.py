"""Show what the latents of personal data do: their values per token and per text, against the labels."""

from collections.abc import Sequence

import pandas as pd

from utils.cli import Parser, run
from utils.evaluated import SAE_HELP
from utils.feature_report import add_arguments, report

EXAMPLES = f"""\
example:
  python eval/Features_PII.py --sae ckpt/smollm2-l1728-b15-k144-PII_synth_s1

A concept's latent is the one it was tied to; of an SAE that was not guided, the best single latent (the root of the
tree of FMS) on tokens of the training split. Beside the tables: tokens.html, texts coloured by a latent; in pieces/,
the values of all tokens and texts (Parquet).

{SAE_HELP}"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and measure; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="PII_synth", help="PII_synth, or your own with token-level labels")
    add_arguments(parser, "Features_<DATASET>-<split>")
    args = parser.parse_args(argv)
    table, text = report(args, args.dataset, f"Features_{args.dataset}", tokens=True)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
