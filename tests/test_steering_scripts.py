"""The steering experiments by their command lines, on a tiny model."""

import json
import re

import pandas as pd
import pytest

from eval import Steering_PII, Steering_RTP, Steering_SP, WinRate
from tests.conftest import SENTENCES
from tests.counting_server import counting_server
from tests.scripts import assert_one_line, outcome
from train import pii_classifier, sp_classifier
from utils import generation, steering_candidates
from utils.completions import read_completions
from utils.errors import UserError
from utils.judges.judge import KEY
from utils.labelled_text import LabelledText, load_labelled_text, whole
from utils.models import load_tokenizer
from utils.results import only_process
from utils.scorers.style import train_style_classifier
from utils.steering_candidates import RIVALS
from utils.steering_sweep import make_prompts

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
    found = found.dropna(subset="value")
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
    found = rows(trained / "results/Steering_SP-valid")
    assert set(found[found["measure"] == "style"]["alpha"]) == {-1.0, 0.0, 0.2, 1.0, 2.0}
    table = read_completions(trained / "results/Steering_SP-valid/completions/ckpt__tiny_s1__constant.csv")
    assert set(table["alpha"]) == {-1.0, 0.0, 0.2, 1.0, 2.0}


def test_another_classifier_scores_anew_and_generates_nothing(sp, trained, capsys, monkeypatch):
    assert outcome(capsys, Steering_SP.main, *sp)[0] == 0
    before = rows(trained / "results/Steering_SP-valid").set_index(["label", "alpha", "measure"])["value"]
    monkeypatch.setattr(generation, "complete", lambda *args: pytest.fail("generated again"))
    data = load_labelled_text(trained / "datasets_v2/text/SP")
    train_style_classifier(data.splits["train"][:2], trained / "ckpt/sp_classifier")
    assert outcome(capsys, Steering_SP.main, *sp)[0] == 0
    after = rows(trained / "results/Steering_SP-valid").set_index(["label", "alpha", "measure"])["value"]
    changed = before.index[(before != after.reindex(before.index)) & before.notna()]
    assert set(changed.get_level_values("measure")) == {"style"}


def test_nothing_but_empty_completions_is_a_result(sp, trained, capsys, monkeypatch):
    def complete(model, tokenizer, prompts, alphas, *more):
        return [generation.Completion(p.id, alpha, " ", 1) for p, alpha in zip(prompts, alphas, strict=True)]

    monkeypatch.setattr(generation, "complete", complete)
    code, printed = outcome(capsys, Steering_SP.main, *sp)
    assert code == 0, printed.err
    found = rows(trained / "results/Steering_SP-valid").set_index("measure")
    assert (found.loc["empty", "value"] == 1.0).all()
    assert found.loc["style", "value"].isna().all()
    assert (found.loc["style", "missing"] == found.loc["style", "n"]).all()


def test_texts_that_are_too_short_to_cut_are_left_out(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    lengths = {text: len(tokenizer(text)["input_ids"]) for text in SENTENCES}
    cut = sorted(lengths.values())[2]
    data = LabelledText("toy", ["X"], {"test": [whole(text, "X") for text in SENTENCES]})
    prompts = make_prompts(data, "test", tokenizer, None, 0, cut)
    assert {SENTENCES[prompt.id]: len(prompt.input_ids) for prompt in prompts} == {
        text: length - cut for text, length in lengths.items() if length > cut
    }
    with pytest.raises(UserError, match="no text is longer than the 1000 tokens"):
        make_prompts(data, "test", tokenizer, None, 0, 1000)


def test_closeness_comes_with_an_embedding_model(sp, trained, tiny_llama, capsys):
    code, printed = outcome(capsys, Steering_SP.main, *sp[2:], "--embedding-model", tiny_llama.folder)
    assert code == 0, printed.err
    assert "closeness" in set(rows(trained / "results/Steering_SP-valid")["measure"])


def test_two_processes_do_not_share_a_folder(sp, trained, capsys):
    with only_process(trained / "results/Steering_SP-valid"):
        code, printed = outcome(capsys, Steering_SP.main, *sp)
    assert_one_line(code, printed, "another process is writing there")


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


def test_rivals_go_through_the_same_sweep_beside_an_sae(sp, trained, tiny_llama, capsys, monkeypatch):
    argv = [*sp[2:], "--model", "tiny", "--pairs", "4", "--alphas", "-0.5", "0.5", "--transitions", "0"]
    argv += ["--method", "constant", *RIVALS]
    code, printed = outcome(capsys, Steering_SP.main, *argv)
    assert code == 0, printed.err
    found = rows(trained / "results/Steering_SP-valid")
    assert set(found["method"]) == {"constant", *RIVALS}
    plain = found[(found["alpha"] == 0) & (found["measure"] == "log_perplexity")]
    assert plain["value"].nunique() == 1  # unsteered, all are the language model
    assert len(list((trained / "results/Steering_SP-valid/completions").glob("tiny__*.csv"))) == len(RIVALS)
    assert {path.name for path in (trained / "ckpt/rivals").iterdir()} == {"icv-tiny-SP-p4-s0", "diffvec-tiny-SP-p4-s0"}
    monkeypatch.setattr(generation, "complete", lambda *args: pytest.fail("generated again"))
    monkeypatch.setattr(steering_candidates, "make_pairs", lambda *args: pytest.fail("fitted again"))
    assert outcome(capsys, Steering_SP.main, *argv)[0] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "constant"], "--method constant steers by an SAE's latents; give --sae"),
        ([], "give an SAE with --sae, or a rival with --method: icv"),
        (["--method", "preadd", "--prefix", " "], "a prefix must not be empty"),
        (["--method", "model-arithmetic", "--alphas", "-1"], "must sum to a positive number"),
    ],
)
def test_bad_options_of_rivals_are_one_line(work, sp_folder, tiny_llama, capsys, argv, message):
    assert outcome(capsys, sp_classifier.main, "--source", sp_folder)[0] == 0
    model = ["--model", "tiny", "--model-path", tiny_llama.folder, "--transitions", "0", "--max-texts", "2"]
    code, printed = outcome(capsys, Steering_SP.main, *model, *argv)
    assert_one_line(code, printed, message)


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
    argv += ["--alphas", "-1", "--max-new-tokens", "4"]
    code, printed = outcome(capsys, Steering_PII.main, *argv)
    assert code == 0, printed.err
    found = rows(tokens / "results/Steering_PII-test")
    assert set(found["method"]) == {"active", "balanced"}
    assert {"pii", "pii_clean"} <= set(found["measure"])
    table = read_completions(next(tokens.glob("results/Steering_PII-test/completions/*s1__balanced.csv")))
    assert table["prompt"].str.contains("<script").any()
    page = (tokens / "results/Steering_PII-test/completions.html").read_text()
    assert "<script" not in page
    assert "&lt;script" in page


def test_the_probe_is_trained_and_counts(tokens, tiny_llama, capsys):
    argv = ["--dataset", "toy", "--model", "tiny", "--block", "1"]
    code, printed = outcome(capsys, pii_classifier.main, *argv)
    assert_one_line(code, printed, "tiny")  # no name of ours
    assert not (tokens / "ckpt/pii_classifier").exists()
    code, printed = outcome(capsys, pii_classifier.main, *argv, "--model-path", tiny_llama.folder)
    assert code == 0, printed.err
    assert "recall" in printed.out
    argv = ["--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder, "--dataset", "toy", "--alphas", "-1"]
    argv += ["--method", "active", "--max-texts", "3", "--max-new-tokens", "4", "--scorer", "ckpt/pii_classifier"]
    code, printed = outcome(capsys, Steering_PII.main, *argv)
    assert code == 0, printed.err
    assert "pii_clean" in set(rows(tokens / "results/Steering_PII-test")["measure"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--alphas", "nan"], "--alphas: numbers are needed"),
        (["--transitions", "-5"], "must be a whole number of at least 0"),
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
