"""FMS of sentence-level concepts (SP, RTP): does one latent, averaged over a text, stand for the concept?"""

from collections.abc import Sequence

from utils.cli import Parser, run
from utils.fms_report import add_arguments, report, sentence_samples

EXAMPLES = """\
example:
  python eval/FMS_RTP_SP.py SP --sae ckpt/smollm2-l1728-b15-k144-SP_s0 --sae ckpt/smollm2-l1728-b15-k144-SP_s1

The activations must be cached: datasets_v2/<model>-<DATASET>-B<block>-<site>, with the SAE's model, block and site.
SAEs of the same name in different folders count as seeds: the table gives their mean and standard deviation.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and score the SAEs."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", help="SP, RTP, RTP_split, or your own with labels of whole texts")
    add_arguments(parser)
    args = parser.parse_args(argv)
    report(args, args.dataset, sentence_samples)


if __name__ == "__main__":
    run(main)
