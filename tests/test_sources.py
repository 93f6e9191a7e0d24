"""Every corpus in its original schema: what becomes of it, and one line for what is not in that schema."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from create_data import combi, csd, pii_300k, rtp, wiki
from create_data.create_dataset import ensure_text
from tests.conftest import SHARED_DATA
from utils.errors import UserError
from utils.labelled_text import LabelledText, Span, Text, whole


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def pii_record(text="I am Ann Lee.", language="English", **changes):
    masks = [
        {"value": "Ann", "start": 5, "end": 8, "label": "GIVENNAME1"},
        {"value": "Lee", "start": 9, "end": 12, "label": "LASTNAME1"},
    ]
    return {"source_text": text, "privacy_mask": masks, "language": language, "set": "train", "id": "1"} | changes


def test_pii_takes_masks_as_spans_and_strips_digits(tmp_path):
    records = [pii_record(), pii_record("I am Ann Lee, too."), pii_record("Io: Ann Lee", "Italian", privacy_mask=[])]
    records.append(pii_record("Say Ann Lee", set="validation", privacy_mask=[]))
    path = write_lines(tmp_path / "pii.jsonl", records)
    data = pii_300k.build("PII_300k", path)
    assert {split: len(texts) for split, texts in data.splits.items()} == {"train": 2, "validation": 1}
    assert data.splits["train"][0].spans == (Span(5, 8, "GIVENNAME"), Span(9, 12, "LASTNAME"))
    assert len(data.concepts) == 25
    everything = pii_300k.build("PII_300k_mult_lang", path)
    assert [text.text for text in everything.splits["train"]][-1] == "Io: Ann Lee"


def test_pii_quarantines_texts_with_misplaced_masks(tmp_path):
    misplaced = pii_record("I'm Ann Lee.")
    other_kind = pii_record("I am Bob", privacy_mask=[{"value": "Bob", "start": 5, "end": 8, "label": "NICKNAME"}])
    data = pii_300k.build("PII_300k", write_lines(tmp_path / "pii.jsonl", [misplaced, other_kind, pii_record()]))
    assert [text.text for text in data.splits["train"]] == ["I am Bob", "I am Ann Lee."]
    assert data.splits["train"][0].spans == ()
    assert data.counts == {
        "texts_with_misplaced_mask_dropped": 1, "misplaced_masks": 2, "empty_texts_dropped": 0, "other_masks": 1,
    }  # fmt: skip
    assert data.manifest()["counts"]["misplaced_masks"] == 2


def test_pii_split_of_a_file_where_records_tell_none(tmp_path):
    plain = pii_record()
    del plain["set"]
    write_lines(tmp_path / "data/train/1english.jsonl", [plain])
    write_lines(tmp_path / "data/validation/1english.jsonl", [plain])
    assert list(pii_300k.build("PII_300k", tmp_path).splits) == ["train", "validation"]
    with pytest.raises(UserError, match="line 1: neither its `set` nor its file's name"):
        pii_300k.build("PII_300k", write_lines(tmp_path / "some.jsonl", [plain]))


def test_parquet_reads_as_json_lines_do(tmp_path):
    records = [pii_record(), pii_record("I am Ann Lee, too.")]
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "pii.parquet")
    from_parquet = pii_300k.build("PII_300k", tmp_path / "pii.parquet")
    assert from_parquet.splits == pii_300k.build("PII_300k", write_lines(tmp_path / "pii.jsonl", records)).splits
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match=r"bad.parquet: not a readable Parquet file"):
        pii_300k.build("PII_300k", tmp_path / "bad.parquet")


def test_wiki_chooses_lines_and_keeps_shipped_splits(tmp_path, monkeypatch):
    monkeypatch.setitem(wiki.N_LINES, "Wiki_small", 20)
    for split, n_lines in (("train", 50), ("test", 5), ("valid", 4)):
        lines = [f" line {i} of {split} " for i in range(n_lines)]
        (tmp_path / f"wiki.{split}.raw").write_text("\n\n".join(lines) + "\n")
    data = wiki.build("Wiki_small", tmp_path, seed=1)
    assert {split: len(texts) for split, texts in data.splits.items()} == {"train": 20, "validation": 4, "test": 5}
    assert data.concepts == []
    numbers = [int(text.text.split()[1]) for text in data.splits["train"]]
    assert numbers == sorted(numbers)
    assert data.counts["empty_lines_dropped"] == 49 + 4 + 3
    assert wiki.build("Wiki_small", tmp_path, seed=1).fingerprint() == data.fingerprint()
    assert wiki.build("Wiki_small", tmp_path, seed=2).fingerprint() != data.fingerprint()


def test_wiki_from_one_file_is_split_by_text(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line {i}" for i in range(30)))
    data = wiki.build("Wiki", tmp_path / "a.txt", seed=0)
    assert {split: len(texts) for split, texts in data.splits.items()} == {"train": 27, "test": 3}


def test_real_wikitext(tmp_path):
    path = SHARED_DATA / "TEXT" / "wikitext2raw.test.txt"
    if not path.is_file():
        pytest.skip("no shared/data/TEXT beside the project")
    data = wiki.build("Wiki_small", path, seed=0)
    assert sum(map(len, data.splits.values())) == sum(bool(line.strip()) for line in path.open(encoding="utf-8"))


def csd_record(*labels, text="Some text"):
    padded = [*labels, *["None"] * 5][:5]
    return {"text": text, "text_type": "user_message"} | {f"labels_{i}": label for i, label in enumerate(padded)}


def test_csd_is_unsafe_by_majority(tmp_path):
    records = [
        csd_record("Safe", "Violence", "Hate/Identity Hate, Threat", text="a"),
        csd_record("Safe", "Safe", "Needs Caution", text="b"),
        csd_record("Safe", "Violence", text="c"),
        csd_record(text="d"),
        csd_record("Violence", None, text="e"),
        csd_record("Safe", text=" "),
    ]
    data = csd.build(write_lines(tmp_path / "aegis.jsonl", records), seed=0)
    labels = {text.text: bool(text.spans) for texts in data.splits.values() for text in texts}
    assert labels == {"a": True, "b": False, "c": False, "e": True}
    assert data.counts == {
        "ties_taken_as_safe": 1, "texts_without_annotation_dropped": 1, "empty_texts_dropped": 1,
    }  # fmt: skip


def test_csd_loses_no_record_of_a_file_without_a_split(tmp_path):
    write_lines(tmp_path / "latest.jsonl", [csd_record("Safe", text="a")])  # "test" is not a word of this name
    write_lines(tmp_path / "aegis_test.jsonl", [csd_record("Violence", text="b")])
    assert csd.build(tmp_path, 0).splits == {"train": [Text("a")], "test": [whole("b", "unsafe")]}


def test_csd_keeps_shipped_splits(tmp_path):
    write_lines(tmp_path / "x_train_release.jsonl", [csd_record("Safe", text="a")])
    write_lines(tmp_path / "x_test_release.jsonl", [csd_record("Violence", text="b")])
    assert csd.build(tmp_path, 0).splits == {"train": [Text("a")], "test": [whole("b", "unsafe")]}


@pytest.fixture
def combi_folder(tmp_path, sp_folder):
    folder = tmp_path / "parts"
    folder.mkdir()
    sp_folder.rename(folder / "SP")

    def piece(text, toxicity):
        return {"text": text, "toxicity": toxicity}

    records = [{"prompt": piece(f"prompt {i}", i % 2), "continuation": piece(" and on", i % 2)} for i in range(40)]
    write_lines(folder / "RTP.jsonl", records)
    (folder / "Wiki.txt").write_text("\n".join(f"article {i}" for i in range(100)))
    return folder


@pytest.mark.parametrize(("ratio", "counts"), [("111", (12, 12, 12)), ("211", (12, 6, 6)), ("120", (12, 24, 0))])
def test_combi_keeps_the_ratio_and_each_part_its_own_labels(combi_folder, ratio, counts):
    data = combi.build(f"Combi_SP-tox_{ratio}", combi_folder, seed=0)
    assert data.concepts == ["Shakespearean", "toxicity"]
    texts = data.splits["train"]
    found = (
        sum(" " in t.text and not t.text.startswith(("prompt", "article")) for t in texts),
        sum(t.text.startswith("prompt") for t in texts),
        sum(t.text.startswith("article") for t in texts),
    )
    assert found == counts
    assert not any(t.spans for t in texts if t.text.startswith("article"))
    assert {span.concept for t in texts if t.text.startswith("prompt") for span in t.spans} == {"toxicity"}
    assert data.splits["test"]
    assert combi.build(f"Combi_SP-tox_{ratio}", combi_folder, seed=0).fingerprint() == data.fingerprint()


def test_combi_says_what_is_missing(combi_folder):
    (combi_folder / "Wiki.txt").unlink()
    with pytest.raises(UserError, match="SP, RTP, Wiki is expected; Wiki is missing"):
        combi.build("Combi_SP-tox_111", combi_folder, seed=0)
    combi.build("Combi_SP-tox_110", combi_folder, seed=0)
    with pytest.raises(UserError, match="not all 0"):
        combi.build("Combi_SP-tox_000", combi_folder, seed=0)


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("PII_300k", {"source_text": 3}, "line 2: no source_text"),
        ("PII_300k", {"source_text": "a", "language": "English"}, "line 2: no privacy_mask"),
        ("PII_300k", pii_record(privacy_mask=[{"start": 1}]), "line 2: a privacy_mask without start, end"),
        ("CSD", {"text": "a"}, "line 2: no labels_0"),
        ("CSD", {"labels_0": "Safe"}, "line 2: no text"),
        ("Wiki", {"line": "a"}, "line 2: no text"),
        ("RTP", ["a"], "line 2: not a record"),
    ],
)  # fmt: skip
def test_a_wrongly_shaped_record_is_named(tmp_path, name, record, message):
    good = {"PII_300k": pii_record(), "CSD": csd_record("Safe"), "Wiki": {"text": "a"}}
    good["RTP"] = {part: {"text": "a", "toxicity": 0.1} for part in ("prompt", "continuation")}
    path = write_lines(tmp_path / "source.jsonl", [good[name], record])
    with pytest.raises(UserError, match=f"source.jsonl, {message}"):
        ensure_text(name, tmp_path / "text", path, 0)
    assert not (tmp_path / "text").exists()


def test_sources_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"a folder without any of \.jsonl"):
        wiki.build("Wiki", tmp_path, 0)
    (tmp_path / "a.txt").write_bytes(b"fine\nbad \xff\n")
    with pytest.raises(UserError, match=r"a.txt, line 2: not UTF-8"):
        wiki.build("Wiki", tmp_path / "a.txt", 0)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"a file of .jsonl.* is expected"):
        wiki.build("Wiki", tmp_path / "a.zip", 0)


def test_texts_with_conflicting_labels_are_kept_or_dropped(tmp_path):
    texts = [whole("same", "X"), whole("same", None), whole("other", "X"), whole("other", "X"), whole("more", None)]
    data = LabelledText("own", ["X"], {"train": texts, "test": [whole("other", "X")]})
    counts = data.manifest()["counts"]
    assert counts == {"repeated_texts": 3, "texts_with_conflicting_labels": 1, "texts_in_several_splits": 1}
    without = data.without_conflicts()
    assert [text.text for text in without.splits["train"]] == ["other", "other", "more"]
    counts = without.manifest()["counts"]
    assert counts["texts_with_conflicting_labels_dropped"] == 2
    assert counts["texts_with_conflicting_labels"] == 0


def test_rtp_counts_what_is_unknown(rtp_file):
    assert rtp.build("RTP", rtp_file, 0).counts == {
        "texts_without_score_dropped": 1, "texts_with_one_score_missing": 0, "empty_texts_dropped": 0,
    }  # fmt: skip


def test_real_rtp():
    path = SHARED_DATA / "RTP" / "rtp_dev.jsonl"
    if not path.is_file():
        pytest.skip("no shared/data/RTP beside the project")
    data = rtp.build("RTP", path, 0)
    kept = sum(map(len, data.splits.values()))
    assert kept + data.counts["texts_without_score_dropped"] + data.counts["empty_texts_dropped"] == 2392
