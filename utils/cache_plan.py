"""How the work of caching is cut up before it starts: which texts, which shards, which batches.

Texts are tokenised twice: for the plan, which keeps only their numbers of tokens, and again when their turn comes. So
memory does not grow with the data set, and the next shard is tokenised while the model is busy with this one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from utils.activation_store import shard_name
from utils.errors import UserError
from utils.labelled_text import LabelledText
from utils.tokens import TokenisedText, count_tokens, tokenise

# A shard should fill several batches, so that texts of similar length meet, and a data set should have several
# shards, so that processes can share them and little is lost by an interruption.
_FEWEST_ROWS = 16_384
_FEWEST_SHARDS = 16
_TEXTS_AT_ONCE = 1_000
_LEAST_FILLING = 0.8
_BUSY = 1 / 8


@dataclass(frozen=True)
class Shard:
    """Consecutive texts of a split that go into one file.

    Attributes:
        split: the split.
        file: the file's name.
        text_ids: the texts, by their index in the split.
        n_rows: the tokens that become rows.
        n_tokens: all tokens, special ones included.
    """

    split: str
    file: str
    text_ids: list[int]
    n_rows: int
    n_tokens: int

    @property
    def name(self) -> str:
        """Where the file lies in its cache."""
        return f"{self.split}/{self.file}"


@dataclass(frozen=True)
class CachePlan:
    """Everything that decides the rows of a cache, apart from the model's weights."""

    data: LabelledText
    tokenizer: Any
    max_length: int
    shards: list[Shard]

    def tokenise(self, shard: Shard) -> list[TokenisedText]:
        """Return the tokens of a shard's texts, with their labels."""
        texts = [self.data.splits[shard.split][i] for i in shard.text_ids]
        return tokenise(texts, shard.text_ids, self.tokenizer, self.data.concepts, self.max_length)


def plan_cache(
    data: LabelledText,
    tokenizer: Any,
    *,
    max_texts: int | None,
    seed: int,
    max_length: int,
    most_rows: int,
) -> CachePlan:
    """Choose the texts of every split, count their tokens and group them into shards of at most `most_rows` rows.

    Raises:
        UserError: a split without any token beside special ones.
    """
    chosen = {split: choose_texts(len(texts), max_texts, seed) for split, texts in data.splits.items()}
    counts = {}
    with tqdm(total=sum(map(len, chosen.values())), unit="text", unit_scale=True, desc="counting", delay=5) as bar:
        for split, ids in chosen.items():
            counts[split] = _count(data, split, ids, tokenizer, max_length, bar)
            if not counts[split][:, 0].any():
                raise UserError(f"{data.name}: split {split!r} holds no token beside special ones; check the texts")
    total = sum(int(rows_and_tokens[:, 0].sum()) for rows_and_tokens in counts.values())
    rows_per_shard = min(most_rows, max(_FEWEST_ROWS, total // _FEWEST_SHARDS))
    shards = []
    for split, ids in chosen.items():
        groups = group_texts(counts[split][:, 0], rows_per_shard)
        for n, group in enumerate(groups):
            n_rows, n_tokens = counts[split][group].sum(axis=0).tolist()
            text_ids = ids[group.start : group.stop]
            shards.append(Shard(split, shard_name(n, len(groups)), text_ids, n_rows, n_tokens))
    return CachePlan(data, tokenizer, max_length, shards)


def choose_texts(n_texts: int, max_texts: int | None, seed: int) -> list[int]:
    """Return the indices of at most `max_texts` texts, chosen at random, in ascending order."""
    if max_texts is None or max_texts >= n_texts:
        return list(range(n_texts))
    return sorted(np.random.default_rng(seed).choice(n_texts, max_texts, replace=False).tolist())


def _count(
    data: LabelledText, split: str, ids: list[int], tokenizer: Any, max_length: int, bar: tqdm
) -> NDArray[np.int64]:
    """Return (rows, tokens) of every text."""
    counts = []
    for start in range(0, len(ids), _TEXTS_AT_ONCE):
        texts = [data.splits[split][i].text for i in ids[start : start + _TEXTS_AT_ONCE]]
        counts += count_tokens(texts, tokenizer, max_length)
        bar.update(len(texts))
    return np.array(counts, np.int64).reshape(-1, 2)


def group_texts(n_rows: NDArray[np.int64], rows_per_shard: int) -> list[slice]:
    """Group consecutive texts, at most `rows_per_shard` rows together unless a text alone has more.

    Texts without rows join their neighbours, so that no group is without rows.
    """
    starts, rows = [0], 0
    for i, own in enumerate(n_rows.tolist()):
        if rows and own and rows + own > rows_per_shard:
            starts.append(i)
            rows = 0
        rows += own
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(n_rows)], strict=True)]


def length_sorted_batches(texts: list[TokenisedText], budget: int) -> Iterator[list[int]]:
    """Yield indices of texts of similar length, longest first, whose padded size stays within a budget of tokens.

    A batch also ends before a text that would mostly be padding, once it is large enough to keep the processor busy.
    """
    order = sorted((i for i, text in enumerate(texts) if text.n_rows), key=lambda i: -len(texts[i].input_ids_T))
    batch: list[int] = []
    longest = 0
    for i in order:
        length = len(texts[i].input_ids_T)
        full = longest * (len(batch) + 1) > budget
        padded = length < _LEAST_FILLING * longest and longest * len(batch) >= budget * _BUSY
        if batch and (full or padded):
            yield batch
            batch = []
        longest = longest if batch else length
        batch.append(i)
    if batch:
        yield batch
