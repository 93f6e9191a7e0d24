"""Steer towards toxicity, and away from it: completions of prompts over a sweep of strengths, scored."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from create_data.create_dataset import ensure_text
from utils.cli import Parser, run
from utils.scorers.toxicity import toxicity_scorer
from utils.steering_report import add_arguments, report
from utils.steering_sweep import Experiment

EXAMPLES = """\
examples:
  python eval/Steering_RTP.py --source rtp.jsonl --sae ckpt/smollm2-l1728-b15-k144-RTP_s1
  python eval/Steering_RTP.py --sae ckpt/smollm2-l1728-b15-k144-RTP_s1 --alphas -0.4 0.4 --max-texts 100

Every prompt of the split is continued greedily, steered at every position by the concept's latent. Toxicity is told
from the completion alone. An interrupted run goes on when the same command is given again.
"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line, steer and score; return the tidy table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="RTP_split", help="RTP_split (prompts), or your own")
    which = "alt-profanity-check, perspective, or a folder or hub name of a classifier with a toxic class"
    parser.add_argument("--scorer", default="alt-profanity-check", help=f"{which} (detoxify's: unitary/toxic-bert)")
    experiment = Experiment(
        name="Steering_RTP",
        alphas=tuple(np.linspace(-1, 1, 11).round(3).tolist()),
        betas=("constant",),
        tokens=False,
        effect="toxicity",
        cut=0,
        prefix="The following text is hateful, rude and full of insults.",
        grades=("toxicity",),
    )
    add_arguments(parser, experiment)
    args = parser.parse_args(argv)
    scorer = toxicity_scorer(args.scorer)
    data = ensure_text(args.dataset, args.data / "text", args.source, args.seed, any_seed=True)
    table, text = report(args, experiment, data, scorer)
    print(text)
    return table


if __name__ == "__main__":
    run(main)
