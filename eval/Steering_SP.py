"""Steer towards Shakespeare's style, and away from it: completions of sentences over a sweep of strengths, scored."""

from pathlib import Path

import numpy as np

from eval.steering_script import SteeringScript
from utils.cli import run
from utils.scorers.style import load_style_classifier
from utils.steering_experiment import Experiment

EXAMPLES = """\
examples:
  python train/sp_classifier.py
  python eval/Steering_SP.py --sae ckpt/smollm2-l1728-b15-k144-SP_s0 --sae ckpt/smollm2-l1728-b15-k144-SP_s1
  python eval/Steering_SP.py --sae ckpt/smollm2-l1728-b15-k144-SP_s1 --alphas -0.4 -0.2 0.2 0.4 --max-texts 100

Every sentence of the split is continued greedily, steered at every position by the concept's latent. The style is told
by the classifier of train/sp_classifier.py. Beside that the likelihood of the next sentence is measured, of either
style after either style, under alpha from -1 to 1. An interrupted run goes on when the same command is given again.
"""
SCRIPT = SteeringScript(
    description=__doc__,
    examples=EXAMPLES,
    experiment=Experiment(
        name="Steering_SP",
        alphas=tuple(np.linspace(-2, 2, 21).round(3).tolist()),
        betas=("constant",),
        tokens=False,
        effect="style",
        cut=0,
        prefixes=(
            "The following lines are from a play by Shakespeare, in the English of his time.",
            "Prithee speak as they did in London in the year 1600, with thou, thee and hath.",
            "Enter Hamlet, who speaks in blank verse.",
        ),
        grades=("style", "grammar"),
        styles=("Shakespearean", "modern"),
        transition_alphas=tuple(np.linspace(-1, 1, 11).round(3).tolist()),
    ),
    dataset=("SP", "SP, or your own with one style of whole texts"),
    scorer=("ckpt/sp_classifier", "the classifier of train/sp_classifier.py"),
    load_scorer=lambda name, args: load_style_classifier(Path(name)),
)
main = SCRIPT.main

if __name__ == "__main__":
    run(main)
