"""Score how well, and how solely, one latent, averaged over a text, stands for its style or toxicity (FMS)."""

from collections.abc import Sequence

import pandas as pd

from create_data.create_dataset import ensure_text
from utils.cli import Parser, positive_int, run
from utils.evaluated import SAE_HELP
from utils.fms_report import add_arguments, report
from utils.sentence_samples import SAMPLE_SETS, SentenceSampler

EXAMPLES = f"""\
examples:
  python eval/FMS_RTP_SP.py SP --sae ckpt/smollm2-l1728-b15-k144-SP_s0 --sae ckpt/smollm2-l1728-b15-k144-SP_s1
  python eval/FMS_RTP_SP.py RTP --samples extreme --sae ckpt/smollm2-l1728-b15-k144-RTP_s1
  python eval/FMS_RTP_SP.py SP --live --sae gemma_scope:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82 \\
      --model gemma2_2b

SAEs of the same name in different folders count as seeds: the table gives their mean and standard deviation.

{SAE_HELP}"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line and score the SAEs; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", help="SP, RTP, RTP_split, or your own with labels of whole texts")
    add_arguments(parser, "FMS_<DATASET>-<split>-<mode>")
    parser.add_argument(
        "--samples",
        choices=SAMPLE_SETS,
        default="labels",
        help="texts compared: all by their labels (of RTP: toxicity >= 0.5); the same with both classes counting the "
        "same; or, of RTP, only those with a toxicity >= 0.75 or <= 0.0456735",
    )
    parser.add_argument("--live", action="store_true", help="run the language model, instead of reading activations")
    parser.add_argument("--model-path", help="local model folder, with --live")
    parser.add_argument("--max-texts", type=positive_int, help="at most so many texts of the split, with --live")
    args = parser.parse_args(argv)
    if not args.live and (args.max_texts or args.model_path):
        parser.error("--max-texts and --model-path go with --live; else the cache has its own texts")
    texts = ensure_text(args.dataset, args.data / "text", None, args.seed, any_seed=True) if args.live else None
    sampler = SentenceSampler(args.samples, args.data, texts, args.model_path, args.max_texts)
    settings = {"samples": args.samples}
    if texts is not None:
        settings |= {"live": texts.fingerprint(), "max_texts": args.max_texts}
    out = "-".join([f"FMS_{args.dataset}", *([args.samples] if args.samples != "labels" else [])])
    table, text = report(args, args.dataset, sampler, out, settings, texts)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
