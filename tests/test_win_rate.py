"""Win rates: arrangements, outcomes, intervals, pairs of files, and the script."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import WinRate
from tests.counting_server import counting_server
from tests.scripts import assert_one_line, outcome
from utils.completions import paired, read_completions, write_completions
from utils.judges.judge import KEY, Judge, JudgeSettings
from utils.win_rate import ARRANGEMENTS, TASKS, Judgement, judge_pairs, score_pairs, tally
from utils.win_rate import outcome as outcome_of


def table(n=6, **columns):
    rows = {
        "prompt_id": range(n), "alpha": [0.2] * n, "prompt": [f"prompt {i}" for i in range(n)],
        "completion": [f"text {i}" for i in range(n)], "style": np.linspace(0, 1, n), "log_perplexity": [3.0] * n,
    }  # fmt: skip
    return pd.DataFrame(rows | columns)


def write(path, rows, **settings_):
    write_completions(path, rows, {"split": "valid"} | settings_)
    return path


def judged(answer, pairs, folder, monkeypatch):
    """Let `answer(first, second, name of the first)` judge; it gives the name of the better one, or draw."""
    monkeypatch.setenv(KEY, "k")

    def reply(question):
        first_name = "Alpha" if question.index("Continuation Alpha") < question.index("Continuation Beta") else "Beta"
        fence = question.split("<<")[1][:10]
        shown = [piece.split(f"\n{fence}>>")[0] for piece in question.split(f"<<{fence}\n")[2:]]
        return json.dumps({"reason": "", "result": answer(*shown, first_name)})

    with counting_server(reply) as server:
        judge = Judge.connect(JudgeSettings(server.url, "m", retries=0), folder)
        return judge_pairs(judge, "sp", pairs)


@pytest.fixture
def pairs():
    return pd.DataFrame(
        {
            "prompt": ["p", "q", "r"],
            "completion_a": ["good", "bad", "good"],
            "completion_b": ["bad", "good", "good too"],
        }
    )


def test_the_better_one_wins_in_every_arrangement(tmp_path, monkeypatch, pairs):
    def honest(first, second, first_name):
        other = {"Alpha": "Beta", "Beta": "Alpha"}[first_name]
        if first == "bad":
            return other
        return first_name if second == "bad" else "draw"

    found = judged(honest, pairs, tmp_path, monkeypatch)
    assert [outcome_of(own) for own in found] == ["win", "loss", "tie"]
    assert [(one.a_first, one.a_alpha) for one in found[0]] == list(ARRANGEMENTS)
    counts = tally(found)
    assert counts["win_rate"] == 0.5
    assert counts["first_preferred"] == counts["alpha_preferred"] == 0.5


@pytest.mark.parametrize(
    ("prefer", "measure"),
    [(lambda first, second, name: name, "first_preferred"), (lambda first, second, name: "Alpha", "alpha_preferred")],
)
def test_a_liking_for_a_place_or_a_name_wins_nothing(tmp_path, monkeypatch, pairs, prefer, measure):
    counts = tally(judged(prefer, pairs, tmp_path, monkeypatch))
    assert counts["inconsistent"] == 3
    assert counts["wins"] == counts["losses"] == 0
    assert counts[measure] == 1.0
    assert counts["win_rate"] == 0.5


def test_what_is_missing_is_neither_a_draw_nor_a_loss(tmp_path, monkeypatch, pairs):
    counts = tally(judged(lambda first, second, name: "both!", pairs, tmp_path, monkeypatch))
    assert counts["missing"] == 3
    assert counts["losses"] == counts["ties"] == 0
    assert np.isnan(counts["win_rate"])


def test_intervals_and_sign_test():
    """Golden: 15 wins and 5 losses; Wilson 0.531 to 0.888, sign test 0.0414 (tables)."""
    counts = tally([[Judgement(1)]] * 15 + [[Judgement(-1)]] * 5 + [[Judgement(0)]] * 10)
    assert (counts["wilson_low"], counts["wilson_high"]) == pytest.approx((0.531, 0.888), abs=1e-3)
    assert counts["p_value"] == pytest.approx(0.0414, abs=1e-4)
    assert counts["win_rate"] == pytest.approx(20 / 30)
    spread = np.sqrt((15 * (1 / 3) ** 2 + 5 * (2 / 3) ** 2 + 10 * (1 / 6) ** 2) / 30 / 30)
    assert counts["low"] == pytest.approx(20 / 30 - 1.96 * spread, abs=0.02)
    assert counts["high"] == pytest.approx(20 / 30 + 1.96 * spread, abs=0.02)


verdicts = st.sampled_from([1, 0, -1, None])


@given(st.lists(st.tuples(verdicts, verdicts, verdicts, verdicts), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_swapping_the_methods_mirrors_the_tally(rows):
    own = [[Judgement(v, *arrangement) for v, arrangement in zip(row, ARRANGEMENTS, strict=True)] for row in rows]
    mirrored = [
        [Judgement(None if one.verdict is None else -one.verdict, not one.a_first, not one.a_alpha) for one in row]
        for row in own
    ]
    a, b = tally(own), tally(mirrored)
    assert (a["wins"], a["losses"]) == (b["losses"], b["wins"])
    assert (a["ties"], a["inconsistent"], a["missing"]) == (b["ties"], b["inconsistent"], b["missing"])
    assert sum(a[name] for name in ("wins", "losses", "ties", "inconsistent", "missing")) == len(rows)
    assert np.isnan([a["win_rate"], b["win_rate"]]).all() or a["win_rate"] == pytest.approx(1 - b["win_rate"])
    for bias in ("first_preferred", "alpha_preferred"):
        assert a[bias] == pytest.approx(b[bias], nan_ok=True)


def test_scorers_put_the_effect_first_and_fluency_second():
    own = pd.DataFrame(
        {
            "prompt": list("pqrstu"),
            "completion_a": ["a", "a", "a", "a", " ", ""],
            "completion_b": ["b", "b", "b", "b", "b", ""],
            "style_a": [0.9, 0.50, 0.50, 0.1, np.nan, np.nan],
            "style_b": [0.1, 0.51, 0.51, np.nan, 0.0, np.nan],
            "log_perplexity_a": [9.0, 3.0, 3.0, 3.0, np.nan, np.nan],
            "log_perplexity_b": [1.0, 4.0, 3.01, 3.0, 3.0, np.nan],
        }
    )
    found = score_pairs(TASKS["sp"], own)
    assert [one[0].verdict for one in found] == [1, 1, 0, None, -1, 0]
    own.loc[1, "log_perplexity_b"] = np.nan
    assert score_pairs(TASKS["sp"], own)[1][0].verdict is None
    own.loc[1, "log_perplexity_b"] = 4.0
    found = score_pairs(TASKS["non-sp"], own)
    assert [one[0].verdict for one in found] == [-1, 1, 0, None, -1, 0]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_texts_come_back_as_they_were(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("t") / "c.csv"
    own = table(len(texts), prompt=texts, completion=[*reversed(texts)])
    write_completions(path, own, {})
    back = read_completions(path)
    assert back["prompt"].tolist() == texts
    assert back["completion"].tolist() == texts[::-1]
    assert back["style"].tolist() == pytest.approx(own["style"].tolist())


def test_pairs_are_of_one_prompt_even_where_prompts_repeat(tmp_path):
    rows = table(4, prompt=["same", "same", "other", "NA"], completion=["", "NA", "None", "1"])
    a = write(tmp_path / "a.csv", rows)
    b = write(tmp_path / "b.csv", rows.iloc[[3, 2, 0, 1]])
    found = paired(a, b, (0.2, 0.2))
    assert len(found) == 4
    assert (found["completion_a"] == found["completion_b"]).all()
    assert sorted(found["completion_a"]) == ["", "1", "NA", "None"]


def test_the_nearest_strength_counts_once(tmp_path):
    rows = pd.concat([table(alpha=[0.3] * 6), table(alpha=[0.1 + 0.2] * 6)])
    assert len(paired(write(tmp_path / "a.csv", rows), write(tmp_path / "b.csv", rows), (0.3, 0.3))) == 6


def test_strengths_of_one_file_can_be_compared(tmp_path):
    rows = pd.concat([table(), table(alpha=[0.0] * 6, completion=["plain"] * 6)])
    a = write(tmp_path / "a.csv", rows)
    found = paired(a, a, (0.2, 0.0))
    assert set(found["completion_b"]) == {"plain"}
    assert "plain" not in set(found["completion_a"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: write(b, table(), split="test"), "different settings (split: 'valid' -> 'test')"),
        (lambda b: write(b, table(4)), "of different prompts (2 are in one only)"),
        (lambda b: write(b, table(alpha=[0.4] * 6)), "no completions for alpha 0.2; it has 0.4"),
        (lambda b: write(b, table().drop(columns="completion")), "no column completion"),
        (lambda b: b.write_text(""), "not a table of completions"),
        (lambda b: b.write_bytes(b"\xff\xfe\x00"), "not a table of completions"),
        (lambda b: b.write_text("prompt,completion\n"), "no completions"),
        (lambda b: None, "no such file"),
        (lambda b: write(b, table().drop(columns="style")), "b.csv: no column 'style'"),
        (lambda b: write(b, table().drop(columns="log_perplexity")), "b.csv: no column 'log_perplexity'"),
        (lambda b: (write(b, table()), b.with_suffix(".json").write_text('{"settings": 1}')), "must be an object"),
    ],
)
def test_files_that_cannot_be_compared_are_one_line(work, capsys, change, message):
    a = write(work / "a.csv", table())
    change(work / "b.csv")
    code, printed = outcome(capsys, WinRate.main, a, work / "b.csv", "--task", "sp")
    assert_one_line(code, printed, message)
    assert not (work / "results").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--judge", "llm"], "--judge llm needs --judge-url"),
        (["--judge", "scorer", "--judge-url", "http://127.0.0.1:1/v1", "--judge-model", "m"], "takes neither"),
        (["--judge-url", "http://127.0.0.1:1/v1"], "go together"),
        (["--alpha", "1", "2", "3"], "one strength for both, or two"),
        (["--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m", "--judge-retries", "0"], "cannot be reached"),
    ],
)
def test_bad_options_are_one_line(work, capsys, monkeypatch, argv, message):
    monkeypatch.setenv(KEY, "k")
    a, b = write(work / "a.csv", table()), write(work / "b.csv", table())
    code, printed = outcome(capsys, WinRate.main, a, b, "--task", "sp", *argv)
    assert_one_line(code, printed, message)


def test_the_script_without_a_judge(work, capsys):
    a = write(work / "a.csv", table(completion=["", *"bcdef"]))
    b = write(work / "b.csv", table(style=[0.5] * 6))
    code, printed = outcome(capsys, WinRate.main, a, b, "--task", "sp", "--names", "guided", "vanilla")
    assert code == 0, printed.err
    out = work / "results" / "WinRate-sp-scorer"
    (row,) = pd.read_csv(out / "winrate.csv").to_dict("records")
    assert row["comparison"] == "guided at 0.2 against vanilla at 0.2"
    assert (row["wins"], row["losses"], row["empty_a"], row["empty_b"]) == (3, 3, 1, 0)
    assert (out / "winrate.png").stat().st_size > 1000
    (each,) = (out / "pairs").iterdir()
    assert pd.read_csv(each)["outcome"].tolist() == ["loss"] * 3 + ["win"] * 3
    assert outcome(capsys, WinRate.main, a, a, "--task", "sp")[0] == 0
    assert len(pd.read_csv(out / "winrate.csv")) == 2


def test_the_script_with_a_judge_asks_again_only_for_what_is_missing(work, capsys, monkeypatch):
    monkeypatch.setenv(KEY, "k")
    a, b = write(work / "a.csv", table()), write(work / "b.csv", table(completion=[f"other {i}" for i in range(6)]))
    ok = json.dumps({"reason": "", "result": "draw"})

    def answer(question):
        return (500, "text/plain", "") if "text 2" in question and len(server.asked) > 9 else ok

    with counting_server(answer) as server:
        argv = ["--task", "sp", "--judge-url", server.url, "--judge-model", "m", "--judge-retries", "0"]
        argv += ["--judge-parallel", "1"]
        code, printed = outcome(capsys, WinRate.main, a, b, *argv)
        assert code == 0, printed.err
        (row,) = pd.read_csv(work / "results/WinRate-sp-llm/winrate.csv").to_dict("records")
        assert (row["ties"], row["missing"]) == (5, 1)
        assert "failed" in printed.out
        failed = {question for question in server.asked if "text 2" in question}
        server.answer = lambda question: ok
        assert outcome(capsys, WinRate.main, a, b, *argv)[0] == 0
        assert outcome(capsys, WinRate.main, a, b, *argv)[0] == 0
    (row,) = pd.read_csv(work / "results/WinRate-sp-llm/winrate.csv").to_dict("records")
    assert (row["ties"], row["missing"]) == (6, 0)
    assert len(server.asked) == 24
    again = {question for question, times in server.asked.items() if times > 1}
    assert again
    assert again <= failed
