"""The frame of eval/Steering_*.py: arguments, texts, scorer, sweep."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from create_data.create_dataset import ensure_text
from utils.cli import Parser, non_negative_int
from utils.errors import UserError
from utils.labelled_text import LabelledText
from utils.scorers.base import Scorer
from utils.steering_candidates import Candidate, candidates
from utils.steering_experiment import Experiment
from utils.steering_report import add_arguments, report


@dataclass(frozen=True)
class SteeringScript:
    """What makes the scripts differ.

    Attributes:
        description: for `--help`.
        examples: likewise.
        experiment: sweep, effect and prompts.
        dataset: the default, and what else it may be.
        scorer: likewise.
        load_scorer: gives the scorer of a name.
    """

    description: str
    examples: str
    experiment: Experiment
    dataset: tuple[str, str]
    scorer: tuple[str, str]
    load_scorer: Callable[[str, argparse.Namespace], Scorer]

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line."""
        parser = Parser(self.description, self.examples)
        parser.add_argument("--dataset", default=self.dataset[0], help=self.dataset[1])
        parser.add_argument("--scorer", default=self.scorer[0], help=self.scorer[1])
        if self.experiment.styles is not None:
            pairs = "pairs of consecutive sentences whose likelihood is measured, too; 0 for none"
            parser.add_argument("--transitions", type=non_negative_int, default=50, help=pairs)
        if not self.experiment.tokens:
            how = "model-arithmetic asks it about the 50 likeliest tokens, too; best another than the one that scores"
            parser.add_argument("--classifier", help=f"as --scorer: {how}")
        add_arguments(parser, self.experiment)
        return parser.parse_args(argv)

    def texts(self, args: argparse.Namespace) -> LabelledText:
        """Return the texts, made where they are not there yet."""
        return ensure_text(args.dataset, args.data / "text", args.source, args.seed, any_seed=True)

    def compared(self, args: argparse.Namespace, data: LabelledText) -> list[Candidate]:
        """Return what is to be compared.

        Raises:
            UserError: see `candidates`; a classifier where nothing asks it.
        """
        name, classifier = getattr(args, "classifier", None), None
        if name is not None:
            if not any(method.startswith("model-arithmetic") for method in args.method or []):
                raise UserError("--classifier: only --method model-arithmetic and model-arithmetic-union ask it")
            classifier = self.load_scorer(name, args)
        return candidates(args, data, self.experiment, classifier)

    def main(self, argv: Sequence[str] | None = None) -> pd.DataFrame:
        """Parse the command line, steer and score; return the tidy table."""
        args = self.parse(argv)
        scorer = self.load_scorer(args.scorer, args)
        data = self.texts(args)
        table, text = report(args, self.experiment, data, scorer, self.compared(args, data))
        print(text)
        return table
