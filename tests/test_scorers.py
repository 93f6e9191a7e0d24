"""Scorers against slow re-statements, the cache beside them, and the classifiers they load."""

import json
import math
import shutil

import pandas as pd
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification, PreTrainedTokenizerFast

from tests.conftest import SENTENCES
from utils.errors import UserError
from utils.json_lines import append_lines, read_lines
from utils.labelled_text import Span, Text, whole
from utils.models import load_tokenizer
from utils.scorers.base import Scored, Scorer, score_cached
from utils.scorers.closeness import Closeness
from utils.scorers.fluency import Fluency
from utils.scorers.pii import PLACEHOLDERS, PIICount, PresidioFinder, pii_scorer, surest
from utils.scorers.pii_probe import spans_of_tokens
from utils.scorers.style import FILE, load_style_classifier, train_style_classifier
from utils.scorers.toxicity import TOXIC, ProfanityCheck, toxicity_scorer
from utils.scorers.transformer import FineTuning, TextClassifier, fine_tune_texts, fine_tune_tokens

STYLED = [whole(text, "Shakespearean" if i % 2 == 0 else None) for i, text in enumerate(SENTENCES)]


class Counting(Scorer):
    """Scores the length, and counts what it was asked; `fails` are scored another time."""

    name = "length"
    reads_prompt = True

    def __init__(self, fingerprint="1", fails=()):
        self.fingerprint, self.fails, self.asked = fingerprint, fails, []

    def score(self, texts):
        self.asked += [text.text for text in texts]
        return [None if text.text in self.fails else {"length": float(len(text.text))} for text in texts]


def test_a_text_is_scored_once(tmp_path):
    texts = [Scored("p", "ab"), Scored("q", "ab"), Scored("p", "ab"), Scored("p", "abc")]
    scorer = Counting()
    first = score_cached(scorer, texts, tmp_path)
    assert first == [{"length": 2.0}] * 3 + [{"length": 3.0}]
    assert scorer.asked == ["ab", "ab", "abc"]  # after another prompt it is another text
    assert score_cached(scorer, texts[::-1], tmp_path) == first[::-1]
    assert len(scorer.asked) == 3
    other = Counting("2")
    score_cached(other, texts, tmp_path)
    assert len(other.asked) == 3


def test_what_failed_is_scored_the_next_time(tmp_path):
    texts = [Scored("", "a"), Scored("", "b")]
    assert score_cached(Counting(fails=("b",)), texts, tmp_path) == [{"length": 1.0}, {}]
    again = Counting()
    assert score_cached(again, texts, tmp_path) == [{"length": 1.0}] * 2
    assert again.asked == ["b"]


def test_a_line_cut_off_is_dropped_and_a_damaged_one_named(tmp_path):
    path = tmp_path / "f.jsonl"
    append_lines(path, [{"key": 1}, {"key": 2}])
    whole_file = path.read_bytes()
    path.write_bytes(whole_file + b'{"key": 3')
    assert [line["key"] for line in read_lines(path, ("key",))] == [1, 2]
    assert path.read_bytes() == whole_file
    for damaged in (b"no json\n", b"[1]\n", b'{"other": 1}\n', b"\xff\xfe\n"):
        path.write_bytes(whole_file + damaged)
        with pytest.raises(UserError, match="line 3 is damaged"):
            read_lines(path, ("key",))


def test_profanity_is_told_and_marked():
    scorer = ProfanityCheck()
    nice, rude, empty = (Scored("", text) for text in ("What a lovely day it is.", "You are a fucking idiot.", " "))
    scores = [own or {} for own in scorer.score([nice, rude, empty])]
    assert scores[0]["toxicity"] < TOXIC < scores[1]["toxicity"]
    assert [own["is_toxic"] for own in scores] == [0.0, 1.0, 0.0]
    assert scores[2]["toxicity"] == 0.0
    assert [rude.text[start:end] for start, end in scorer.marks(rude.text)] == ["fucking", "idiot"]
    assert scorer.marks("") == []


def test_placeholders_do_not_count():
    scorer = PIICount(PresidioFinder())
    text = "Write to jane.miller@corp.com or to john.doe@example.com; call John Doe, 192.168.0.1."
    (scores,) = scorer.score([Scored("", text)])
    assert scores is not None
    found = {text[start:end] for start, end in scorer.marks(text)}
    assert "jane.miller@corp.com" in found
    assert not {"John Doe", "192.168.0.1"} & found
    assert scores["pii"] > scores["pii_clean"] == len(found)
    assert all(word == word.strip().lower() for word in PLACEHOLDERS)
    assert scorer.score([Scored("", "")]) == [{"pii": 0.0, "pii_clean": 0.0}]


def test_of_overlapping_spans_the_surest_stays():
    """Spans come with the surest last."""
    spans = [Span(0, 10, "A"), Span(8, 12, "B"), Span(2, 5, "C"), Span(20, 22, "D")]
    assert surest(spans) == [Span(2, 5, "C"), Span(8, 12, "B"), Span(20, 22, "D")]


def test_tokens_join_to_spans_of_the_completion_alone():
    text = Scored("call Ann", " Lee now , Bob")
    joined = text.prompt + text.text
    offsets = [(0, 4), (4, 8), (8, 12), (12, 16), (16, 18), (18, 22)]
    assert [joined[start:end] for start, end in offsets] == ["call", " Ann", " Lee", " now", " ,", " Bob"]
    spans = spans_of_tokens(text, offsets, [0.1, 0.9, 0.9, 0.2, 0.0, 0.7])
    assert [text.text[span.start : span.end] for span in spans] == ["Lee", "Bob"]


def test_style_is_learnt_stored_and_read_back_without_pickle(tmp_path):
    train_style_classifier(STYLED, tmp_path)
    scorer = load_style_classifier(tmp_path)
    scores = scorer.score([Scored("", text) for text in [*SENTENCES, "  "]])
    assert [(own or {}).get("style", 0) > 0.5 for own in scores[:-1]] == [i % 2 == 0 for i in range(len(SENTENCES))]
    assert scores[-1] == {}
    (tmp_path / FILE).write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(UserError, match="not a style classifier"):
        load_style_classifier(tmp_path)
    with pytest.raises(UserError, match=r"train one with train/sp_classifier\.py"):
        load_style_classifier(tmp_path / "nowhere")
    with pytest.raises(UserError, match="with and without"):
        train_style_classifier(STYLED[::2], tmp_path)


@pytest.fixture
def fluency(tiny_llama):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama.folder).eval()
    return Fluency(model, load_tokenizer(tiny_llama), "r")


def test_perplexity_is_that_of_the_completion_after_its_prompt(fluency):
    texts = [Scored("Why do you", " cry at night ?"), Scored("Thou", " art a villain"), Scored("x", "")]
    scores = fluency.score(texts)
    for text, own in zip(texts[:2], scores, strict=False):
        prompt = fluency.tokenizer(text.prompt)["input_ids"]
        ids = fluency.tokenizer(text.text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_p_TV = fluency.model(torch.tensor([prompt + ids])).logits[0].log_softmax(dim=1)
        expected = -sum(log_p_TV[len(prompt) + i - 1, token].item() for i, token in enumerate(ids)) / len(ids)
        assert own["log_perplexity"] == pytest.approx(expected, rel=1e-4)
    assert scores[2] == {"n_words": 0.0}


def test_an_end_token_of_the_tokenizer_is_no_part_of_the_prompt(fluency):
    class Ending:
        """Puts <eos> behind every text, as some tokenizers do."""

        def __init__(self, tokenizer):
            self.tokenizer = tokenizer

        def __getattr__(self, name):
            return getattr(self.tokenizer, name)

        def __call__(self, text, add_special_tokens=True, **more):
            ids = self.tokenizer(text, **more)["input_ids"]
            return {"input_ids": [*ids, self.tokenizer.eos_token_id] if add_special_tokens else ids}

    texts = [Scored("Why do you", " cry at night ?")]
    expected = fluency.score(texts)
    assert Fluency(fluency.model, Ending(fluency.tokenizer), "r").score(texts) == expected


def test_repetition_and_distinct_words(fluency):
    (own,) = fluency.score([Scored("p", "a b a b c")])
    assert own["distinct_1"] == pytest.approx(3 / 5)
    assert own["distinct_2"] == pytest.approx(3 / 4)  # ab ba ab bc
    assert own["repetition"] == pytest.approx(2 / 5)


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory, tokenizer_file):
    """Folders of small encoders with random weights: a base, and one with a toxic class."""
    root = tmp_path_factory.mktemp("bert")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertForTokenClassification(config).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    config.id2label, config.problem_type = {0: "Toxic", 1: "insult"}, "multi_label_classification"
    BertForSequenceClassification(config).save_pretrained(root / "toxic")
    tokenizer.save_pretrained(root / "toxic")
    return root


def test_a_transformer_is_tuned_to_a_style(tiny_bert, tmp_path):
    how = FineTuning(epochs=60, lr=5e-3, batch_size=6)
    fine_tune_texts(str(tiny_bert / "base"), STYLED, ("other", "style"), how, tmp_path / "c")
    scores = load_style_classifier(tmp_path / "c").score([Scored("", text) for text in [*SENTENCES, ""]])
    assert [(own or {}).get("style", 0) > 0.5 for own in scores[:-1]] == [i % 2 == 0 for i in range(len(SENTENCES))]
    assert scores[-1] == {}
    assert not list((tmp_path / "c").glob("*.bin"))
    with pytest.raises(UserError, match="is there already"):
        fine_tune_texts(str(tiny_bert / "base"), STYLED, ("other", "style"), how, tmp_path / "c")
    with pytest.raises(UserError, match="no model that can be loaded"):
        fine_tune_texts(str(tmp_path / "nowhere"), STYLED, ("other", "style"), how, tmp_path / "d")


def test_a_transformer_is_tuned_to_find_personal_data(tiny_bert, tmp_path):
    texts = [Text(f"call {name} now", (Span(5, 5 + len(name), "NAME"),)) for name in ("Bob", "Ann", "Zoe", "Kim")]
    how = FineTuning(epochs=80, lr=5e-3, batch_size=4)
    fine_tune_tokens(str(tiny_bert / "base"), texts, how, tmp_path / "c")
    scorer = pii_scorer(str(tmp_path / "c"))
    assert [scorer.marks(text.text) for text in texts] == [[(5, 8)]] * 4
    assert scorer.score([Scored("", "call Bob now"), Scored("", "")]) == [
        {"pii": 1.0, "pii_clean": 1.0},
        {"pii": 0.0, "pii_clean": 0.0},
    ]
    with pytest.raises(UserError, match="no classifier there"):
        pii_scorer(str(tmp_path))


def test_a_model_without_a_trained_head_or_with_other_classes_is_refused(tiny_bert, tmp_path):
    with pytest.raises(UserError, match="its first class must be 'O'"):
        pii_scorer(str(tiny_bert / "toxic"))
    config = json.loads((tiny_bert / "base/config.json").read_text())
    copied = shutil.copytree(tiny_bert / "base", tmp_path / "ner")
    (copied / "config.json").write_text(json.dumps(config | {"id2label": {"0": "PERSON", "1": "O"}}))
    with pytest.raises(UserError, match="its first class must be 'O'"):
        pii_scorer(str(copied))
    (copied / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="no model that can be loaded"):
        pii_scorer(str(copied))


def test_a_fingerprint_follows_what_was_fitted_and_nothing_else(tmp_path):
    fingerprints = []
    for name, texts in (("a", STYLED), ("b", STYLED), ("c", STYLED[:4])):
        train_style_classifier(texts, tmp_path / name)
        fingerprints.append(load_style_classifier(tmp_path / name).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_any_classifier_with_a_toxic_class_scores_toxicity(tiny_bert):
    scorer = toxicity_scorer(str(tiny_bert / "toxic"))
    assert isinstance(scorer, TextClassifier)
    (own, empty) = scorer.score([Scored("", "Thou art a villain"), Scored("", " ")])
    ids = scorer.tokenizer("Thou art a villain", return_tensors="pt")
    with torch.no_grad():
        assert own == {"toxicity": pytest.approx(scorer.model(**ids).logits[0, 0].sigmoid().item(), rel=1e-5)}
    assert empty == {"toxicity": 0.0}
    with pytest.raises(UserError, match=r"no class 'friendly'; it has Toxic, insult"):
        TextClassifier.load(str(tiny_bert / "toxic"), "toxicity", "friendly", 0.0)
    with pytest.raises(UserError, match="no classifier of this kind"):
        TextClassifier.load(str(tiny_bert / "base"), "toxicity", "toxic", 0.0)


def test_closeness_is_the_cosine_of_mean_embeddings(tiny_bert):
    scorer = Closeness.load(str(tiny_bert / "base"))
    same, other, empty = scorer.score([Scored("Thou art", "Thou art"), Scored("Thou art", "you lie"), Scored("a", "")])
    assert same == {"closeness": pytest.approx(1.0, abs=1e-5)}
    assert other is not None
    assert other["closeness"] < 0.999
    assert empty == {}


def test_means_intervals_and_what_is_missing():
    from utils.steering_tables import at_equal, summarise

    table = pd.DataFrame(
        {
            "prompt_id": [0, 1, 0, 1],
            "alpha": [0.0, 0.0, 1.0, 1.0],
            "prompt": ["p"] * 4,
            "completion": ["c"] * 4,
            "style": [0.2, 0.4, 0.8, math.nan],
            "never": [math.nan] * 4,
        }
    )
    rows = {(row["alpha"], row["measure"]): row for row in summarise(table, 0)}
    assert set(rows) == {(alpha, measure) for alpha in (0.0, 1.0) for measure in ("style", "never")}
    assert rows[0.0, "never"]["missing"] == 2
    assert rows[0.0, "never"]["value"] is None
    assert rows[0.0, "style"]["value"] == pytest.approx(0.3)
    assert rows[0.0, "style"]["low"] == pytest.approx(0.2)
    assert rows[1.0, "style"] == {
        "alpha": 1.0, "measure": "style", "value": 0.8, "low": 0.8, "high": 0.8, "n": 2, "missing": 1,
    }  # fmt: skip
    tidy = pd.DataFrame(
        [
            {"label": label, "alpha": alpha, "measure": measure, "value": value}
            for label, gain in (("a", 1.0), ("b", 0.2))
            for alpha in (-1.0, 0.0, 1.0)
            for measure, value in (("style", 0.3 + gain * alpha / 2), ("log_perplexity", 3 + abs(alpha)))
        ]
    )
    found = at_equal(tidy, "style", "log_perplexity", 0.5).set_index("label")
    assert found.loc["a", "alpha"] == pytest.approx(0.4)
    assert found.loc["a", "log_perplexity"] == pytest.approx(3.4)
    assert found["alpha"].isna().to_dict() == {"a": False, "b": True}
