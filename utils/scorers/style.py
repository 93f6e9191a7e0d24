"""Style by a small classifier of our own: TF-IDF of words and pairs of words, and logistic regression.

Stored by skops, which unlike pickle runs nothing when it is read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skops.io
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from utils.atomic import atomic_file
from utils.errors import UserError, first_line
from utils.labelled_text import Text
from utils.scorers.base import Scored, Scorer, Scores
from utils.scorers.fingerprints import fitted_fingerprint
from utils.scorers.transformer import TextClassifier

FILE = "classifier.skops"
_PIECES = r"[^\W\d_]+|[^\w\s]"  # words and signs
_MARKED = 2.0  # log-odds
_TRUSTED = ["scipy.sparse._csr.csr_matrix"]


def train_style_classifier(texts: Sequence[Text], folder: Path) -> Pipeline:
    """Fit the classifier on labelled sentences and store it in a folder.

    Raises:
        UserError: sentences of one class only; a folder that holds something else.
    """
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a transformer; choose another --out, or remove it")
    labels = [bool(text.spans) for text in texts]
    if len(set(labels)) < 2:
        raise UserError("the style classifier needs sentences with and without the style")
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, lowercase=True, token_pattern=_PIECES)
    classifier = make_pipeline(words, LogisticRegression(C=10, max_iter=1000))
    classifier.fit([text.text for text in texts], labels)
    with atomic_file(folder / FILE) as temporary:
        skops.io.dump(classifier, temporary)
    return classifier


@dataclass(frozen=True)
class StyleClassifier(Scorer):
    """`style`: the probability that a text has the style; an empty one has none."""

    classifier: Any
    fingerprint: str
    name: str = "style"

    @classmethod
    def load(cls, folder: Path) -> "StyleClassifier":
        """Read what `train_style_classifier` stored.

        Raises:
            UserError: nothing there, or something else.
        """
        path = folder / FILE
        if not path.is_file():
            raise UserError(f"{path}: no style classifier there; train one with train/sp_classifier.py")
        try:
            classifier = skops.io.load(path, trusted=_TRUSTED)
        except Exception as error:
            raise UserError(f"{path}: not a style classifier ({first_line(error)})") from None
        return cls(classifier, f"style {fitted_fingerprint(classifier)}")

    def score(self, texts: Sequence[Scored]) -> list[Scores | None]:
        """Score the completions alone."""
        filled = [text.text for text in texts if text.text.strip()]
        found = iter(self.classifier.predict_proba(filled)[:, 1].tolist() if filled else [])
        return [{"style": next(found)} if text.text.strip() else {} for text in texts]

    def marks(self, text: str) -> list[tuple[int, int]]:
        """Return the words that speak most for the style."""
        vocabulary, weights = self.classifier[0].vocabulary_, self.classifier[1].coef_[0]
        return [
            word.span()
            for word in re.finditer(_PIECES, text)
            if (place := vocabulary.get(word.group().lower())) is not None and weights[place] >= _MARKED
        ]


def load_style_classifier(folder: Path) -> Scorer:
    """Load a classifier of train/sp_classifier.py: the small one, or a fine-tuned transformer.

    Raises:
        UserError: none there.
    """
    if (folder / "config.json").is_file():
        return TextClassifier.load(str(folder), "style", "style", empty=None)
    return StyleClassifier.load(folder)
