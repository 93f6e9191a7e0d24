"""The steering experiments by their command lines, on a tiny model."""

import json
import re

import pandas as pd
import pytest

from eval import Steering_PII, Steering_RTP, Steering_SP, WinRate
from tests.counting_server import counting_server
from tests.scripts import assert_one_line, outcome
from train import pii_classifier, sp_classifier
from utils import generation
from utils.completions import read_completions
from utils.judges.judge import KEY

GRAMMAR = {"criticism": "", "is_grammatically_correct": True, "is_style_appropriate": False}


@pytest.fixture
def sp(trained, tiny_llama, capsys):
    """Arguments of a sweep of two SAEs over sentences."""
    assert outcome(capsys, sp_classifier.main)[0] == 0
    argv = ["--sae", "ckpt/tiny_s0", "--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder, "--rows", "5"]
    return [*argv, "--alphas", "-1", "0.2", "1", "--max-new-tokens", "5", "--transitions", "2"]


def rows(folder):
    return pd.read_csv(folder / "steering.csv")


def test_style_is_steered_scored_and_shown(sp, trained, capsys):
    code, printed = outcome(capsys, Steering_SP.main, *sp)
    assert code == 0, printed.err
    folder = trained / "results/Steering_SP-valid"
    found = rows(folder)
    assert set(found["alpha"]) >= {-1.0, 0.0, 0.2, 1.0}
    assert set(found["label"]) == {"ckpt/tiny_s0 (constant)", "ckpt/tiny_s1 (constant)"}
    measures = {"style", "log_perplexity", "distinct_1", "repetition", "empty", "n_tokens"}
    assert measures <= set(found["measure"])
    assert {f"next_{a}_to_{b}" for a in ("Shakespearean", "modern") for b in ("Shakespearean", "modern")} <= set(
        found["measure"]
    )
    assert ((found["low"] <= found["value"] + 1e-12) & (found["value"] <= found["high"] + 1e-12)).all()
    plain = found[found["alpha"] == 0].pivot_table(index="measure", columns="label", values="value")
    assert (plain.iloc[:, 0] == plain.iloc[:, 1]).all()  # unsteered, both are the language model
    for name in ("effect", "pareto", "transitions"):
        assert (folder / f"{name}.png").stat().st_size > 1000
    table = read_completions(folder / "completions/ckpt__tiny_s1__constant.csv")
    style = found[(found["label"] == "ckpt/tiny_s1 (constant)") & (found["measure"] == "style")].set_index("alpha")
    assert table.groupby("alpha")["style"].mean().to_list() == pytest.approx(style["value"].sort_index().to_list())
    page = (folder / "completions.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<script|src=", page)
    assert page.count("<tr>") == 2 * page.count("<h2>") > 0


def test_a_second_run_generates_and_scores_nothing(sp, trained, capsys, monkeypatch):
    assert outcome(capsys, Steering_SP.main, *sp)[0] == 0
    before = (trained / "results/Steering_SP-valid/steering.csv").read_bytes()
    monkeypatch.setattr(generation, "complete", lambda *args: pytest.fail("generated again"))
    assert outcome(capsys, Steering_SP.main, *sp)[0] == 0
    assert (trained / "results/Steering_SP-valid/steering.csv").read_bytes() == before


def test_more_strengths_keep_the_completions_that_are_there(sp, trained, capsys, monkeypatch):
    assert outcome(capsys, Steering_SP.main, *sp)[0] == 0
    done, made = generation.complete, []

    def complete(model, tokenizer, prompts, alphas, *more):
        made.extend(alphas)
        return done(model, tokenizer, prompts, alphas, *more)

    monkeypatch.setattr(generation, "complete", complete)
    assert outcome(capsys, Steering_SP.main, *sp, "--alphas", "0.2", "2")[0] == 0
    assert set(made) == {2.0}


def test_a_judge_grades_and_is_asked_again_only_for_what_is_missing(sp, trained, capsys, monkeypatch):
    monkeypatch.setenv(KEY, "k")
    style = {
        "criticism": "", "style_alignment": "A", "is_shakespearean_grammar": True, "is_modern_grammar": False,
        "is_fluent": True, "is_coherent": True, "is_repeating": False, "style_change": 1, "shakespearean": "B",
        "prompt_shakespearean": "F", "is_in_harmony": True,
    }  # fmt: skip
    asked_before: list[str] = []

    def answer(question):
        if len(server.asked) == 4 and not asked_before:
            asked_before.append(question)
            return (500, "text/plain", "")
        return json.dumps(style if "Shakespeare" in question else GRAMMAR)

    with counting_server(answer) as server:
        argv = [*sp[2:], "--judge-url", server.url, "--judge-model", "m", "--judge-retries", "0", "--judge-parallel", 1]
        code, printed = outcome(capsys, Steering_SP.main, *argv)
        assert code == 0, printed.err
        assert "1 failed" in printed.out
        found = rows(trained / "results/Steering_SP-valid")
        assert found[found["measure"] == "judge_style_change"]["missing"].sum() == 1
        assert set(found[found["measure"] == "judge_is_style_appropriate"]["value"]) == {0.0}
        assert outcome(capsys, Steering_SP.main, *argv)[0] == 0
        assert outcome(capsys, Steering_SP.main, *argv)[0] == 0
    found = rows(trained / "results/Steering_SP-valid")
    assert found[found["measure"].str.startswith("judge_")]["missing"].sum() == 0
    assert [times for times in server.asked.values() if times > 1] == [2]


def test_completions_of_two_saes_make_a_win_rate(sp, trained, capsys):
    assert outcome(capsys, Steering_SP.main, *sp)[0] == 0
    folder = trained / "results/Steering_SP-valid/completions"
    files = [folder / "ckpt__tiny_s1__constant.csv", folder / "ckpt__tiny_s0__constant.csv"]
    code, printed = outcome(capsys, WinRate.main, *files, "--task", "sp")
    assert code == 0, printed.err
    (row,) = pd.read_csv(trained / "results/WinRate-sp-scorer/winrate.csv").to_dict("records")
    assert row["pairs"] == len(read_completions(files[0])["prompt_id"].unique())


def test_toxicity_is_steered(toxic, tiny_llama, capsys):
    argv = ["--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder, "--dataset", "RTP", "--split", "train"]
    argv += ["--alphas", "1", "--max-texts", "3", "--max-new-tokens", "4"]
    code, printed = outcome(capsys, Steering_RTP.main, *argv)
    assert code == 0, printed.err
    found = rows(toxic / "results/Steering_RTP-train")
    assert {"toxicity", "is_toxic"} <= set(found["measure"])
    assert found[found["measure"] == "toxicity"]["n"].tolist() == [3, 3]


def test_personal_data_is_steered_and_counted(tokens, tiny_llama, capsys):
    argv = ["--sae", "ckpt/tiny_s0", "--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder, "--dataset", "toy"]
    argv += ["--alphas", "-1", "--max-texts", "3", "--max-new-tokens", "4"]
    code, printed = outcome(capsys, Steering_PII.main, *argv)
    assert code == 0, printed.err
    found = rows(tokens / "results/Steering_PII-test")
    assert set(found["method"]) == {"active", "balanced"}
    assert {"pii", "pii_clean"} <= set(found["measure"])
    table = read_completions(next(tokens.glob("results/Steering_PII-test/completions/*s1__balanced.csv")))
    assert table["prompt"].nunique() == 3
    assert "<script>" not in (tokens / "results/Steering_PII-test/completions.html").read_text()


def test_the_probe_is_trained_and_counts(tokens, tiny_llama, capsys):
    argv = ["--dataset", "toy", "--model", "tiny", "--block", "1"]
    code, printed = outcome(capsys, pii_classifier.main, *argv)
    assert_one_line(code, printed, "tiny")  # no name of ours
    assert not (tokens / "ckpt/pii_classifier").exists()
    code, printed = outcome(capsys, pii_classifier.main, *argv, "--model-path", tiny_llama.folder)
    assert code == 0, printed.err
    assert "recall" in printed.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--alphas", "nan"], "--alphas: numbers are needed"),
        (["--latents", "64"], "has latents 0 to 63"),
        (["--split", "test"], "no split 'test'"),
        (["--method", "loud"], "invalid choice: 'loud'"),
        (["--scorer", "nowhere"], "no style classifier there"),
        (["--judge-model", "m"], "go together"),
        (["--judge-model", "m", "--judge-url", "http://127.0.0.1:9/v1"], "JUDGE_API_KEY is not set"),
        (["--embedding-model", "nowhere"], "cannot be loaded"),
    ],
)
def test_bad_options_are_one_line(sp, trained, capsys, monkeypatch, argv, message):
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    code, printed = outcome(capsys, Steering_SP.main, *sp, *argv)
    assert_one_line(code, printed, message)


def test_other_settings_are_not_mixed_in(sp, trained, capsys):
    assert outcome(capsys, Steering_SP.main, *sp)[0] == 0
    code, printed = outcome(capsys, Steering_SP.main, *sp, "--max-new-tokens", "6")
    assert_one_line(code, printed, "holds results of other settings (max_new_tokens: 5 -> 6)")


def test_an_sae_of_other_concepts_is_refused(tokens, sp_folder, tiny_llama, capsys):
    assert outcome(capsys, sp_classifier.main, "--source", sp_folder)[0] == 0
    argv = ["--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder, "--dataset", "SP"]
    code, printed = outcome(capsys, Steering_SP.main, *argv)
    assert_one_line(code, printed, "guided by WHO, NUMBER, not by Shakespearean")
