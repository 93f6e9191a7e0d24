"""Steer towards Shakespeare's style, and away from it: completions of sentences over a sweep of strengths, scored."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from create_data.create_dataset import ensure_text
from utils.cli import Parser, non_negative_int, run
from utils.scorers.style import load_style_classifier
from utils.steering_report import add_arguments, report
from utils.steering_sweep import Experiment

EXAMPLES = """\
examples:
  python train/sp_classifier.py
  python eval/Steering_SP.py --sae ckpt/smollm2-l1728-b15-k144-SP_s0 --sae ckpt/smollm2-l1728-b15-k144-SP_s1
  python eval/Steering_SP.py --sae ckpt/smollm2-l1728-b15-k144-SP_s1 --alphas -0.4 -0.2 0.2 0.4 --max-texts 100

Every sentence of the split is continued greedily, steered at every position by the concept's latent. The style is told
by the classifier of train/sp_classifier.py. Beside that the likelihood of the next sentence is measured, of either
style after either style, under alpha from -1 to 1. An interrupted run goes on when the same command is given again.
"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line, steer and score; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="SP", help="SP, or your own with one style of whole texts")
    parser.add_argument("--scorer", default="ckpt/sp_classifier", help="the classifier of train/sp_classifier.py")
    pairs = "pairs of consecutive sentences whose likelihood is measured, too; 0 for none"
    parser.add_argument("--transitions", type=non_negative_int, default=50, help=pairs)
    experiment = Experiment(
        name="Steering_SP",
        alphas=tuple(np.linspace(-2, 2, 21).round(3).tolist()),
        betas=("constant",),
        tokens=False,
        effect="style",
        cut=0,
        prefix="The following lines are from a play by Shakespeare, in the English of his time.",
        grades=("style", "grammar"),
        styles=("Shakespearean", "modern"),
        transition_alphas=tuple(np.linspace(-1, 1, 11).round(3).tolist()),
    )
    add_arguments(parser, experiment)
    args = parser.parse_args(argv)
    scorer = load_style_classifier(Path(args.scorer))
    data = ensure_text(args.dataset, args.data / "text", args.source, args.seed, any_seed=True)
    table, text = report(args, experiment, data, scorer)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
