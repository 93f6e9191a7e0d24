"""The samples of sentence-level FMS: texts, pooled, and which of them are compared."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from utils.cache_plan import choose_texts
from utils.caching import MAX_LENGTH
from utils.errors import UserError
from utils.evaluated import Evaluated, texts_of
from utils.extraction import Extractor
from utils.fms_report import Sample
from utils.fms_samples import PooledTexts, pool_cached, pool_texts
from utils.labelled_text import LabelledText, Text
from utils.latent_blocks import LatentBlocks
from utils.models import find_model, load_config, load_tokenizer
from utils.tokens import tokenise

SAMPLE_SETS = ("labels", "balanced", "extreme")
EXTREME_HIGH, EXTREME_LOW = 0.75, 0.0456735


@dataclass(frozen=True)
class SentenceSampler:
    """Pools the texts of a split and chooses those that are compared.

    Attributes:
        sample_set: `labels` (all texts), `balanced` (the same, both classes counting the same) or `extreme` (scores of
            at least 0.75 against those of at most 0.0456735; the paper's sets for toxicity).
        data: folder with activations and texts.
        live: the texts, where the language model is to be run on them.
        model_path: a local model folder for that.
        max_texts: at most so many of the split, for that.
    """

    sample_set: str
    data: Path
    live: LabelledText | None = None
    model_path: str | None = None
    max_texts: int | None = None

    def __call__(self, subject: Evaluated, split_name: str, seed: int) -> Iterator[Sample]:
        """Yield the samples of each concept."""
        if self.live is not None:
            concepts, texts = self.live.concepts, self.live.splits[split_name]
            pooled = self._run_model(subject, self.live, split_name, seed)
        else:
            concepts = subject.cache.concepts
            pooled = pool_cached(subject.loaded.sae, subject.cache.split(split_name))
            texts = [] if self.sample_set != "extreme" else texts_of(subject.cache, self.data).splits[split_name]
        if self.sample_set == "extreme" and len(concepts) > 1:
            raise UserError("--samples extreme: scores are of one concept, but this data set has several")
        latents = LatentBlocks.of(pooled.means_BN)
        rows_B = extreme_rows(texts, pooled.text_ids_B) if self.sample_set == "extreme" else None
        for c, concept in enumerate(concepts):
            labels_B = np.ascontiguousarray(pooled.labels_BC[:, c])
            if rows_B is None:
                yield Sample(concept, latents, labels_B, self.sample_set == "balanced")
            else:
                yield Sample(concept, latents.only(rows_B), labels_B[rows_B])

    def _run_model(self, subject: Evaluated, data: LabelledText, split_name: str, seed: int) -> PooledTexts:
        source = find_model(subject.model, self.model_path)
        extractor = Extractor.load(source, subject.block, subject.site)
        text_ids = choose_texts(len(data.splits[split_name]), self.max_texts, seed)
        texts = [data.splits[split_name][i] for i in text_ids]
        max_length = min(MAX_LENGTH, load_config(source).max_position_embeddings)
        tokenised = tokenise(texts, text_ids, load_tokenizer(source), data.concepts, max_length)
        return pool_texts(subject.loaded.sae, extractor, tokenised)


def extreme_rows(texts: list[Text], text_ids_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of some texts have a score of at least 0.75 or at most 0.0456735.

    Raises:
        UserError: texts without scores.
    """
    score_B = np.array([texts[text_id].score for text_id in text_ids_B], np.float64)  # none is NaN, which is neither
    if np.isnan(score_B).all():
        raise UserError("--samples extreme: these texts have no scores; only RTP and RTP_split have")
    return np.flatnonzero((score_B >= EXTREME_HIGH) | (score_B <= EXTREME_LOW))
