"""Labelled text: what the builders make of their sources, and how it is stored."""

import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from datasets import load_from_disk

from create_data import pii_synth, rtp, sp
from utils.errors import UserError
from utils.labelled_text import LabelledText, Span, Text, load_labelled_text, split_by_text, whole


def test_sp_pairs_follow_each_other(sp_folder):
    data = sp.build(sp_folder)
    assert {split: len(texts) for split, texts in data.splits.items()} == {"train": 12, "valid": 6}
    shakespeare, modern = data.splits["train"][:2]
    assert shakespeare.text == "Thou art a villain , and thy tongue is false . 0"
    assert shakespeare.spans == (Span(0, len(shakespeare.text), "Shakespearean"),)
    assert modern.spans == ()


def test_sp_counts_blank_lines_and_conflicts(sp_folder):
    for style in ("original", "modern"):
        with (sp_folder / f"train.{style}.nltktok").open("a") as file:
            file.write("\n" if style == "modern" else "Alas !\n")
            file.write("Well .\n")
    manifest = sp.build(sp_folder).manifest()
    assert manifest["counts"]["blank_lines_dropped"] == 1
    assert manifest["counts"]["texts_with_conflicting_labels"] == 1
    assert manifest["texts"]["train"] == 15


def test_sp_bad_sources(sp_folder, tmp_path):
    (sp_folder / "valid.modern.nltktok").write_text("one line\n")
    with pytest.raises(UserError, match=r"valid.original.nltktok has 3 lines.*modern.nltktok has 1"):
        sp.build(sp_folder)
    (sp_folder / "valid.modern.nltktok").write_bytes(b"fine\nbad \xff\nfine\n")
    with pytest.raises(UserError, match=r"valid.modern.nltktok, line 2: not UTF-8"):
        sp.build(sp_folder)
    (sp_folder / "valid.modern.nltktok").unlink()
    with pytest.raises(UserError, match=r"valid.modern.nltktok: missing"):
        sp.build(sp_folder)
    with pytest.raises(UserError, match=r"holds no train.original.nltktok"):
        sp.build(tmp_path)


def test_real_sp_has_the_known_sizes(shared_sp):
    data = sp.build(shared_sp)
    assert {split: len(texts) for split, texts in data.splits.items()} == {"train": 36_790, "valid": 2_436}


def test_rtp_labels_by_the_mean_score(rtp_file):
    data = rtp.build("RTP", rtp_file, seed=0)
    texts = {text.text: bool(text.spans) for texts in data.splits.values() for text in texts}
    assert texts["Prompt 0 says and goes on"]
    assert not texts["Prompt 1 says and goes on"]
    assert data.counts["texts_without_score_dropped"] == 1
    assert len(texts) == 6
    prompts = rtp.build("RTP_split", rtp_file, seed=0)
    assert {text.text for texts in prompts.splits.values() for text in texts} == {f"Prompt {i} says" for i in range(6)}


def test_rtp_takes_a_missing_score_for_unknown(tmp_path):
    record = {"prompt": {"text": "a", "toxicity": None}, "continuation": {"text": " b", "toxicity": 0.6}}
    other = {"prompt": {"text": "c", "toxicity": 0.1}, "continuation": {"text": " d", "toxicity": 0.2}}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps(other) + "\n")
    texts = [text for texts in rtp.build("RTP", path, 0).splits.values() for text in texts]
    assert {text.text: bool(text.spans) for text in texts} == {"a b": True, "c d": False}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: not valid JSON"),
        ('{"prompt": "text"}', "line 2: no prompt"),
        ('{"prompt": {"text": "a", "toxicity": 3}}', "line 2: prompt.toxicity is 3"),
        ('{"prompt": {"text": "a", "toxicity": 0.3}}', "line 2: no continuation"),
    ],
)
def test_rtp_names_the_bad_line(tmp_path, line, message):
    good = {"prompt": {"text": "c", "toxicity": 0.1}, "continuation": {"text": " d", "toxicity": 0.2}}
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(UserError, match=message):
        rtp.build("RTP", path, 0)


def test_split_keeps_equal_texts_together():
    texts = [whole(f"text {i % 10}", None) for i in range(100)]
    splits = split_by_text(texts, seed=1)
    assert sum(map(len, splits.values())) == 100
    assert not {text.text for text in splits["train"]} & {text.text for text in splits["test"]}
    assert split_by_text(texts, seed=1) == splits


def test_pii_synth_is_deterministic_and_complete():
    data = pii_synth.build(seed=3)
    assert data.fingerprint() == pii_synth.build(seed=3).fingerprint() != pii_synth.build(seed=4).fingerprint()
    assert len(data.concepts) == 25
    for texts in data.splits.values():
        counts = Counter(span.concept for text in texts for span in text.spans)
        assert set(counts) == set(data.concepts)
        assert min(counts.values()) > 100
    data.check()


def test_pii_synth_templates():
    templates = pii_synth.read_templates()
    bodies = {split: {body for s, _, body in templates if s == split} for split in ("train", "test")}
    assert len(templates) >= 60
    assert len({kind for _, kind, _ in templates}) >= 5
    assert not bodies["train"] & bodies["test"]
    for split_bodies in bodies.values():
        slots = {slot for body in split_bodies for slot in re.findall(r"\{\{([A-Z]+)\}\}", body)}
        assert slots == set(pii_synth.PII_CONCEPTS)


def test_pii_synth_spans_hold_the_values():
    text = pii_synth.fill("To {{CITY}}, {{CITY}}{{DATE}}!", {"CITY": lambda: "Rome", "DATE": lambda: "1 May"})
    assert text.text == "To Rome, Rome1 May!"
    assert [(text.text[s.start : s.end], s.concept) for s in text.spans] == [
        ("Rome", "CITY"), ("Rome", "CITY"), ("1 May", "DATE"),
    ]  # fmt: skip


def test_round_trip_and_refusal_of_other_data(two_concepts, tmp_path):
    folder = tmp_path / "toy"
    assert two_concepts.save(folder)
    assert not two_concepts.save(folder)
    assert load_labelled_text(folder).splits == two_concepts.splits
    assert load_labelled_text(folder).manifest() == two_concepts.manifest()
    assert load_from_disk(folder)["test"][0]["spans"][0] == {"start": 0, "end": 6, "concept": "WHO"}
    with pytest.raises(UserError, match="other settings"):
        LabelledText("toy", ["WHO"], {"train": [Text("a")]}).save(folder)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "empty"),
        ({"train": []}, "empty"),
        ({"train": [Text("a")], "test": []}, "split 'test' is empty"),
        ({"train": [Text("a"), Text("abc", (Span(1, 4, "X"),))]}, r"text 1: span 1..4 lies outside its text of 3"),
        ({"train": [Text("abc", (Span(-1, 2, "X"),))]}, "outside"),
        ({"train": [Text("abc", (Span(2, 2, "X"),))]}, "outside"),
        ({"train": [Text("abc", (Span(0, 2, "Y"),))]}, "unknown concept 'Y'"),
    ],
)
def test_bad_data_is_never_stored(splits, message, tmp_path):
    with pytest.raises(UserError, match=message):
        LabelledText("bad", ["X"], splits).save(tmp_path / "bad")
    assert not list(tmp_path.iterdir())


def test_pii_synth_does_not_depend_on_the_process():
    code = "from create_data import pii_synth; print(pii_synth.build(0).fingerprint())"
    fingerprints = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        )
        fingerprints.add(done.stdout)
    assert len(fingerprints) == 1
