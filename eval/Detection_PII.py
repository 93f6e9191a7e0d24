"""Detect personal data, token by token: by the concepts' latents, and by what they should be compared with."""

from collections.abc import Sequence

import pandas as pd

from utils.cli import Parser, positive_int, run
from utils.detection_report import report
from utils.evaluated import SAE_HELP, add_sae_arguments

EXAMPLES = f"""\
example:
  python eval/Detection_PII.py --sae ckpt/smollm2-l1728-b15-k144-PII_synth_s1

A token is of the concept whose latent is largest, and of none (O) where all of them are 0. An SAE that was not guided
lends for each concept its best single latent on the training split, which may be one that is off where the concept is:
then it names the class of the other tokens, for which the paper's protocol has no remedy. Beside it: logistic
regression on the raw activations and on all latents, both trained on the training split, and presidio, which sees the
text.

{SAE_HELP}"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and measure; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="PII_synth", help="PII_synth, or your own with token-level labels")
    add_sae_arguments(parser, "Detection_<DATASET>-<split>")
    parser.add_argument("--train-split", default="train", help="split for the probes, and for roots")
    parser.add_argument(
        "--max-tokens", type=positive_int, default=100_000, help="tokens that the probes are trained on"
    )
    parser.add_argument("--no-probes", action="store_true", help="leave the linear probes out")
    parser.add_argument("--no-presidio", action="store_true", help="leave presidio out")
    parser.add_argument("--model-path", help="local model folder, for its tokenizer")
    args = parser.parse_args(argv)
    table, text = report(args, args.dataset)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
