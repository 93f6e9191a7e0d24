"""Train the classifier that tells Shakespeare's style from the modern one; what steering is scored with."""

from collections.abc import Sequence
from pathlib import Path

from create_data.create_dataset import ensure_text
from utils.activation_cache import EVALUATION_SPLITS
from utils.cli import Parser, run
from utils.errors import UserError
from utils.scorers.base import Scored
from utils.scorers.style import load_style_classifier, train_style_classifier
from utils.scorers.transformer import FineTuning, fine_tune_texts

EXAMPLES = """\
examples:
  python train/sp_classifier.py --source FOLDER
  python train/sp_classifier.py --base distilbert-base-uncased         # a fine-tuned transformer, as in the paper

TF-IDF of words and pairs of words, and logistic regression, trained on the train split: a few seconds. With --base a
transformer (from a folder or the hub) is fine-tuned instead.
"""


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Parse the command line, train, and return the accuracy on each other split."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--dataset", default="SP", help="SP, or your own with one style")
    parser.add_argument("--source", type=Path, help="where the texts come from, as in create_dataset.py")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder with texts")
    parser.add_argument("--out", type=Path, default=Path("ckpt/sp_classifier"), help="folder for the classifier")
    parser.add_argument("--base", help="folder or hub name of an encoder to fine-tune instead")
    parser.add_argument("--epochs", type=float, default=2, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=2e-5, help="of fine-tuning")
    args = parser.parse_args(argv)
    data = ensure_text(args.dataset, args.data / "text", args.source, 0)
    if "train" not in data.splits:
        raise UserError(f"{args.dataset} has no train split; it has {', '.join(data.splits)}")
    if args.base:
        how = FineTuning(epochs=args.epochs, lr=args.lr)
        fine_tune_texts(args.base, data.splits["train"], ("other", "style"), how, args.out)
    else:
        train_style_classifier(data.splits["train"], args.out)
    classifier = load_style_classifier(args.out)
    accuracies = {}
    for split in (name for name in EVALUATION_SPLITS if name in data.splits):
        texts = [text for text in data.splits[split] if text.text.strip()]
        scores = classifier.score([Scored("", text.text) for text in texts])
        told = [(score or {}).get("style", 0.0) > 0.5 for score in scores]
        right = [one == bool(text.spans) for one, text in zip(told, texts, strict=True)]
        accuracies[split] = sum(right) / len(right)
        print(f"{split}: accuracy {accuracies[split]:.3f} on {len(right):,} sentences")
    print(f"{args.out} is ready")
    return accuracies


if __name__ == "__main__":
    run(main)
