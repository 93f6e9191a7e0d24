"""How the work of caching is cut up before it starts: which texts, which shards, which batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.activation_store import shard_name
from utils.errors import UserError
from utils.labelled_text import LabelledText
from utils.tokens import TokenisedText, tokenise


@dataclass(frozen=True)
class Shard:
    """Consecutive texts of a split that go into one file."""

    split: str
    file: str
    texts: list[TokenisedText]

    @property
    def n_rows(self) -> int:
        """The number of tokens that become rows."""
        return sum(text.n_rows for text in self.texts)


def plan_shards(
    data: LabelledText,
    tokenizer: object,
    *,
    max_texts: int | None,
    seed: int,
    max_length: int,
    rows_per_shard: int,
) -> list[Shard]:
    """Choose and tokenise the texts of every split and group them into shards.

    Raises:
        UserError: a split without any token beside special ones.
    """
    shards = []
    for split, texts in data.splits.items():
        ids = choose_texts(len(texts), max_texts, seed)
        tokens = tokenise([texts[i] for i in ids], ids, tokenizer, data.concepts, max_length)
        if not any(text.n_rows for text in tokens):
            raise UserError(f"{data.name}: split {split!r} holds no token beside special ones; check the texts")
        groups = _group(tokens, rows_per_shard)
        shards += [Shard(split, shard_name(n, len(groups)), group) for n, group in enumerate(groups)]
    return shards


def choose_texts(n_texts: int, max_texts: int | None, seed: int) -> list[int]:
    """Return the indices of at most `max_texts` texts, chosen at random, in ascending order."""
    if max_texts is None or max_texts >= n_texts:
        return list(range(n_texts))
    return sorted(np.random.default_rng(seed).choice(n_texts, max_texts, replace=False).tolist())


def _group(tokens: list[TokenisedText], rows_per_shard: int) -> list[list[TokenisedText]]:
    """Group consecutive texts, at most `rows_per_shard` rows together unless a text alone has more.

    Texts without rows join their neighbours, so that no group is without rows.
    """
    groups: list[list[TokenisedText]] = [[]]
    rows = 0
    for text in tokens:
        if rows and text.n_rows and rows + text.n_rows > rows_per_shard:
            groups.append([])
            rows = 0
        groups[-1].append(text)
        rows += text.n_rows
    return groups


def length_sorted_batches(texts: list[TokenisedText], budget: int) -> Iterator[list[int]]:
    """Yield indices of texts of similar length, longest first, whose padded size stays within a budget of tokens."""
    order = sorted((i for i, text in enumerate(texts) if text.n_rows), key=lambda i: -len(texts[i].input_ids_T))
    start = 0
    while start < len(order):
        n_texts = max(1, budget // len(texts[order[start]].input_ids_T))
        yield order[start : start + n_texts]
        start += n_texts
