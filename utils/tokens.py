"""Tokens of labelled texts: which concepts each token carries, and which tokens are special."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.labelled_text import Span, Text


@dataclass(frozen=True)
class TokenisedText:
    """The T tokens of one text.

    Attributes:
        text_id: the text's index in its split.
        input_ids_T: token ids, special tokens included.
        keep_T: False for special tokens, which never become rows.
        labels_TC: 1 where a token carries a concept.
        truncated: whether tokens beyond the longest sequence were cut off.
    """

    text_id: int
    input_ids_T: NDArray[np.int32]
    keep_T: NDArray[np.bool_]
    labels_TC: NDArray[np.int8]
    truncated: bool

    @property
    def n_rows(self) -> int:
        """The number of tokens that become rows."""
        return int(self.keep_T.sum())


def special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of all special tokens: bos, eos, pad ... and every added token that is marked special."""
    marked = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(marked | set(tokenizer.all_special_ids))


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text that is to be continued: without special ones that a tokenizer puts at its end."""
    special = set(special_token_ids(tokenizer))
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    while ids and ids[-1] in special:
        ids = ids[:-1]
    return ids


def count_tokens(texts: list[str], tokenizer: Any, max_length: int) -> list[tuple[int, int]]:
    """Return (tokens that become rows, all tokens) of each text, as `tokenise` will cut and keep them."""
    if not texts:
        return []
    special = np.array(special_token_ids(tokenizer))
    encoded = tokenizer(texts, verbose=False)["input_ids"]
    kept_and_all = []
    for ids in encoded:
        input_ids_T = np.array(ids[:max_length], dtype=np.int32)
        kept_and_all.append((int((~np.isin(input_ids_T, special)).sum()), len(input_ids_T)))
    return kept_and_all


def tokenise(
    texts: list[Text], text_ids: list[int], tokenizer: Any, concepts: list[str], max_length: int
) -> list[TokenisedText]:
    """Tokenise texts and label each token by its characters.

    Args:
        texts: the texts; `text_ids` gives the index of each in its split.
        text_ids: as long as `texts`.
        tokenizer: a fast tokenizer, for its character offsets.
        concepts: the order of the label columns.
        max_length: longest sequence in tokens, special ones included; what lies beyond is cut off.
    """
    if not texts:
        return []
    column = {concept: c for c, concept in enumerate(concepts)}
    special = np.array(special_token_ids(tokenizer))
    encoded = tokenizer([text.text for text in texts], return_offsets_mapping=True, verbose=False)
    result = []
    for text, text_id, ids, offsets in zip(
        texts, text_ids, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        input_ids_T = np.array(ids[:max_length], dtype=np.int32)
        labels_TC = label_tokens(text.text, text.spans, offsets[:max_length], column)
        keep_T = ~np.isin(input_ids_T, special)
        result.append(TokenisedText(text_id, input_ids_T, keep_T, labels_TC, len(ids) > max_length))
    return result


def label_tokens(
    text: str, spans: tuple[Span, ...], offsets: list[tuple[int, int]], column: dict[str, int]
) -> NDArray[np.int8]:
    """Mark the tokens that share a character with a span.

    The white space that many tokenizers glue to the front of a word does not count as the word's, so that a span that
    ends with a blank does not claim the word after it. A token without characters of its own (some tokenizers trim
    white space to nothing) belongs to the spans it lies inside of.

    Returns:
        labels_TC, with the columns that `column` gives the concepts.
    """
    starts_T = np.array([start for start, _ in offsets], dtype=np.int64)
    ends_T = np.array([end for _, end in offsets], dtype=np.int64)
    for t, (start, end) in enumerate(offsets):
        piece = text[start:end]
        if piece and not piece.isspace():
            starts_T[t] += len(piece) - len(piece.lstrip())
    labels_TC = np.zeros((len(offsets), len(column)), dtype=np.int8)
    for span in spans:
        labels_TC[(starts_T < span.end) & (ends_T > span.start), column[span.concept]] = 1
    return labels_TC
