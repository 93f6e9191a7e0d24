"""Which tokens carry a span's label."""

import pytest

from utils.labelled_text import Span, Text
from utils.models import load_tokenizer
from utils.tokens import label_tokens, tokenise


def labelled_pieces(tokenizer, text, span):
    """The characters of the tokens that carry the span's label."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    labels_TC = label_tokens(text, (span,), encoded["offset_mapping"], {"X": 0})
    return [text[slice(*encoded["offset_mapping"][t])] for t in labels_TC[:, 0].nonzero()[0]]


def span_of(text, value):
    start = text.index(value)
    return Span(start, start + len(value), "X")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Call Maria now.", "Maria"),
        ("Maria calls", "Maria"),  # at the start
        ("This is Maria", "Maria"),  # at the end
        ("Maria", "Maria"),  # the whole text
        ("mail anna.k@example.org!", "anna.k@example.org"),
        ("card 4929 1234 5678 9012 ok", "4929 1234 5678 9012"),
        ("x=2024-05-31T10:00", "2024-05-31"),
        ("bonjour Zoé Müller-Lüdenscheidt !", "Zoé Müller-Lüdenscheidt"),
        ("name: Rene\u0301 (combining)", "Rene\u0301"),
        ("emoji 👨‍👩‍👧 and 🙂 here", "👨‍👩‍👧"),
        ("日本の田中さんです", "田中"),
        ("two  spaces  New  York  x", "New  York"),
        ("line\nbreak\tTab\nend", "Tab"),
    ],
)
def test_tokens_of_a_span_cover_it_and_no_more(smollm2, text, value):
    tokenizer = load_tokenizer(smollm2)
    span = span_of(text, value)
    encoded = tokenizer(text, return_offsets_mapping=True)
    labels_T = label_tokens(text, (span,), encoded["offset_mapping"], {"X": 0})[:, 0]
    covered = set()
    for label, (start, end) in zip(labels_T, encoded["offset_mapping"], strict=True):
        characters = {i for i in range(start, end) if not text[i].isspace()}
        inside = characters & set(range(span.start, span.end))
        assert bool(label) == bool(inside) or not characters  # a blank inside the span may carry it, too
        if label:
            covered |= characters
    assert {i for i in range(span.start, span.end) if not text[i].isspace()} <= covered


def test_blank_tokens_inside_a_span_carry_its_label_and_those_beside_do_not(smollm2):
    tokenizer = load_tokenizer(smollm2)
    text = "see  New   York  there"
    pieces = labelled_pieces(tokenizer, text, span_of(text, "New   York"))
    assert "".join(pieces).strip() == "New   York"


def test_a_span_that_begins_mid_token_labels_the_whole_token(smollm2):
    tokenizer = load_tokenizer(smollm2)
    text = "the grandmother spoke"
    assert labelled_pieces(tokenizer, text, span_of(text, "mother")) == [" grandmother"]


def test_touching_spans_do_not_share_tokens(smollm2):
    tokenizer = load_tokenizer(smollm2)
    text = "Anna Smith"
    encoded = tokenizer(text, return_offsets_mapping=True)
    # The first span ends with the blank that the tokenizer glues to the second word.
    spans = (Span(0, 5, "FIRST"), Span(5, 10, "LAST"))
    labels_TC = label_tokens(text, spans, encoded["offset_mapping"], {"FIRST": 0, "LAST": 1})
    assert (labels_TC.sum(axis=1) == 1).all()


def test_overlapping_spans_give_both_labels():
    labels_TC = label_tokens("abcdef", (Span(0, 4, "A"), Span(2, 6, "B")), [(0, 2), (2, 4), (4, 6)], {"A": 0, "B": 1})
    assert labels_TC.tolist() == [[1, 0], [1, 1], [0, 1]]


def test_a_token_trimmed_to_nothing_belongs_to_the_span_around_it():
    offsets = [(0, 3), (4, 4), (5, 9)]
    assert label_tokens("New   York", (Span(0, 10, "A"),), offsets, {"A": 0})[:, 0].tolist() == [1, 1, 1]
    assert label_tokens("New   York", (Span(5, 9, "A"),), offsets, {"A": 0})[:, 0].tolist() == [0, 0, 1]


def test_digits_are_split_as_the_model_was_trained(smollm2):
    tokenizer = load_tokenizer(smollm2)
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 2024")["input_ids"]) == ["in", "Ġ", "2", "0", "2", "4"]


def test_special_tokens_are_marked(smollm2):
    tokenizer = load_tokenizer(smollm2)
    tokens = tokenise([Text("a<|im_end|>b")], [7], tokenizer, [], 100)[0]
    assert tokens.text_id == 7
    assert tokens.keep_T.tolist() == [True, False, True]
    assert tokens.labels_TC.shape == (3, 0)
