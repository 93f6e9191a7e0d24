"""Train a classifier that tells which tokens are personal data; another scorer for steering, beside presidio."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from create_data.create_dataset import ensure_text
from utils.activation_cache import EVALUATION_SPLITS, ActivationCache
from utils.activation_store import cache_name
from utils.cli import Parser, positive_int, run, seed
from utils.errors import UserError
from utils.labelled_text import Text
from utils.models import find_model
from utils.scorers.base import Scored
from utils.scorers.pii import pii_scorer
from utils.scorers.pii_probe import train_pii_probe
from utils.scorers.transformer import FineTuning, fine_tune_tokens

EXAMPLES = """\
examples:
  python train/pii_classifier.py                                     # a probe on cached activations, seconds
  python train/pii_classifier.py --base distilbert-base-cased        # a fine-tuned transformer

Without --base it is a linear probe on SmolLM2's activations, those that create_data/act_dataset.py has cached. Trained
on the train split; precision and recall are of the characters of every other split.
"""


def main(argv: Sequence[str] | None = None) -> dict[str, tuple[float, float]]:
    """Parse the command line, train, and return precision and recall on each other split."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="PII_synth", help="PII_synth, or another with token-level labels")
    parser.add_argument("--source", type=Path, help="where the texts come from, as in create_dataset.py")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder with texts and activations")
    parser.add_argument("--model", default="smollm2", help="of the activations")
    parser.add_argument("--model-path", help="local model folder")
    parser.add_argument("--block", type=int, default=15, help="of the activations")
    parser.add_argument("--most-tokens", type=positive_int, default=30_000, help="that the probe is trained on")
    parser.add_argument("--base", help="folder or hub name of an encoder to fine-tune instead")
    parser.add_argument("--epochs", type=float, default=2, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=2e-5, help="of fine-tuning")
    parser.add_argument("--max-texts", type=positive_int, help="at most so many texts to test on")
    parser.add_argument("--seed", type=seed, default=0, help="of everything that is drawn")
    parser.add_argument("--out", type=Path, default=Path("ckpt/pii_classifier"), help="folder for the classifier")
    args = parser.parse_args(argv)
    data = ensure_text(args.dataset, args.data / "text", args.source, args.seed, any_seed=True)
    if "train" not in data.splits:
        raise UserError(f"{args.dataset} has no train split; it has {', '.join(data.splits)}")
    if args.base:
        how = FineTuning(epochs=args.epochs, lr=args.lr, seed=args.seed)
        fine_tune_tokens(args.base, data.splits["train"], how, args.out)
    else:
        find_model(args.model, args.model_path)  # it will be needed
        cache = ActivationCache(args.data / cache_name(args.model, args.dataset, args.block, "block"))
        train_pii_probe(cache, cache.split("train"), args.most_tokens, args.seed, args.out)
    finder = pii_scorer(str(args.out), args.model_path).finder
    scores = {}
    for split in (name for name in EVALUATION_SPLITS if name in data.splits):
        texts = data.splits[split][: args.max_texts]
        found = finder.find([Scored("", text.text) for text in texts])
        right, told, true = np.sum(
            [_characters(text, [(s.start, s.end) for s in own]) for text, own in zip(texts, found, strict=True)], axis=0
        )
        scores[split] = (right / max(told, 1), right / max(true, 1))
        print(f"{split}: precision {scores[split][0]:.3f}, recall {scores[split][1]:.3f}, {len(texts):,} texts")
    print(f"{args.out} is ready")
    return scores


def _characters(text: Text, found: list[tuple[int, int]]) -> tuple[int, int, int]:
    """Return how many characters are rightly told, told, and truly personal data."""
    told, true = np.zeros((2, len(text.text)), bool)
    for start, end in found:
        told[start:end] = True
    for span in text.spans:
        true[span.start : span.end] = True
    return int((told & true).sum()), int(told.sum()), int(true.sum())


if __name__ == "__main__":
    run(main)
