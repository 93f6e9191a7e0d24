"""Tuning the rivals and comparing them, on a tiny model; what is chosen, held against the rule."""

import json
from typing import Any

import pandas as pd
import pytest
import torch

from eval import compare, tune_rivals
from tests.scripts import assert_one_line, outcome
from train import sp_classifier
from utils import steering_cost
from utils.comparison import NAMES
from utils.rivals.tuned import SWEEPS, choose, load_tuned
from utils.steering_cost import allocated_peak
from utils.steering_report import TUNED


def table_of(**measures):
    """Rows of a sweep over -0.1, 0, 0.1 and 0.2."""
    return pd.DataFrame(
        {"alpha": alpha, "measure": name, "value": value}
        for name, values in measures.items()
        for alpha, value in zip((-0.1, 0.0, 0.1, 0.2), values, strict=True)
    )


def test_the_strongest_effect_within_the_limits_of_quality_is_chosen():
    tried = table_of(
        style=(0.1, 0.3, 0.5, 0.9),
        log_perplexity=(1.2, 1.0, 1.29, 1.31),
        repetition=(0.3, 0.25, 0.34, 0.2),
        n_words=(20, 20, 16, 20),
    )
    assert choose(tried, "style", 1) == 0.1  # at 0.2 the perplexity has risen too far
    assert choose(tried, "style", -1) == -0.1
    tried.loc[(tried["alpha"] == 0.1) & (tried["measure"] == "repetition"), "value"] = 0.36
    assert choose(tried, "style", 1) is None
    tried.loc[(tried["alpha"] == 0.1) & (tried["measure"] == "repetition"), "value"] = 0.2
    tried.loc[(tried["alpha"] == 0.1) & (tried["measure"] == "n_words"), "value"] = 14  # hardly anything is written
    assert choose(tried, "style", 1) is None


def test_a_latent_that_was_not_tied_may_point_the_other_way():
    tried = table_of(style=(0.5, 0.3, 0.2, 0.1), log_perplexity=(1,) * 4, repetition=(0,) * 4, n_words=(9,) * 4)
    assert choose(tried, "style", 1) is None
    assert choose(tried, "style", 1, signed=False) == -0.1


def test_without_a_file_the_literatures_strengths_are_tried(tmp_path):
    assert load_tuned(tmp_path, "icv", "SP", "smollm2", only_down=False).strengths == SWEEPS["icv"]
    assert max(load_tuned(tmp_path, "icv", "SP", "smollm2", only_down=True).strengths) < 0


def test_the_shipped_settings_can_be_read():
    for dataset, script in tune_rivals.SCRIPTS.items():
        for method in NAMES:
            only_down = max(script.experiment.alphas) <= 0
            tuned = load_tuned(TUNED, method, dataset, "smollm2", only_down=only_down)
            found = json.loads((TUNED / f"{method}-{dataset}.json").read_text())
            assert set(tuned.chosen) == ({"down"} if only_down else {"down", "up"})
            assert set(tuned.chosen.values()) - {None} <= set(tuned.strengths)
            assert found["tuning"]["split"] == "train"
            assert "Appendix D" in found["literature"]["note"]


def test_the_peak_of_what_is_allocated_is_exact():
    def work():
        a, b = torch.zeros(1000, 1000), torch.zeros(500, 1000)
        del a
        return b, torch.zeros(250, 1000)

    assert allocated_peak(work) == 6_000_000


@pytest.fixture
def sp(trained, sp_folder, tiny_llama, capsys):
    assert outcome(capsys, sp_classifier.main, "--source", sp_folder)[0] == 0
    return ["--model", "tiny", "--model-path", tiny_llama.folder, "--max-texts", "2", "--tuned-settings", "tuned"]


def test_all_methods_are_tuned_and_compared(sp, trained, capsys, monkeypatch):
    saes = ["--sae", "ckpt/tiny_s1", "--sae", "ckpt/tiny_s0"]
    code, printed = outcome(capsys, tune_rivals.main, "SP", *sp, *saes)
    assert code == 0, printed.err
    tuned = {path.stem: json.loads(path.read_text()) for path in (trained / "tuned").iterdir()}
    assert set(tuned) == {f"{method}-SP" for method in NAMES}
    assert tuned["preadd-SP"]["options"]["prefix"] in tune_rivals.SCRIPTS["SP"].experiment.prefixes
    assert tuned["icv-SP"]["options"]["pairs"] in tune_rivals.PAIRS
    assert [len(own["tuning"]["tried"][0]["sweep"]) for own in (tuned["icv-SP"], tuned["sae-SP"])] == [11, 9]
    for method in ("icv", "g-sae"):  # whatever a random model does, all have a strength
        path = trained / "tuned" / f"{method}-SP.json"
        path.write_text(json.dumps(tuned[f"{method}-SP"] | {"chosen": {"up": 0.1, "down": None}}))

    code, printed = outcome(capsys, compare.main, "SP", *sp, *saes)
    assert code == 0, printed.err
    out = trained / "results/compare"
    table = pd.read_csv(out / "compare.csv")
    assert list(table.groupby("direction").size()) == [8, 8]
    assert set(table["method"]) == {"unsteered", *NAMES.values()}
    icv = table[(table["method"] == "ICV") & (table["direction"] == "up")].iloc[0]
    assert icv["strength"] == 0.1
    assert 0 <= icv["won_unsteered"] <= 1
    assert 0 <= icv["g_sae_won"] <= 1
    costs: Any = table[table["method"] != "unsteered"].drop_duplicates("method").set_index("method")
    assert (costs["seconds_per_1000_tokens"] > 0).all()
    assert costs.loc["G-SAE", "extra_megabytes"] > costs.loc["DiffVec", "extra_megabytes"]
    none = table[(table["method"] == "ICV") & (table["direction"] == "down")].iloc[0]
    assert none[["strength", "effect", "won_unsteered"]].isna().all()
    assert "| ICV | 0.1 |" in (out / "compare.md").read_text()
    assert "| ICV | none |" in (out / "compare.md").read_text()
    assert r"\begin{tabular}" in (out / "compare.tex").read_text()
    assert (out / "pareto.png").stat().st_size > 1000

    monkeypatch.setattr(steering_cost, "_seconds", lambda work: pytest.fail("measured again"))
    assert outcome(capsys, compare.main, "SP", *sp, *saes)[0] == 0
    pd.testing.assert_frame_equal(pd.read_csv(out / "compare.csv"), table)


def test_a_steering_script_takes_what_was_tuned(sp, trained, capsys):
    (trained / "tuned").mkdir()
    found = {"model": "tiny", "strengths": [0.4], "options": {"prefix": "O villain"}, "chosen": {}}
    (trained / "tuned/preadd-SP.json").write_text(json.dumps(found))
    code, printed = outcome(capsys, tune_rivals.SCRIPTS["SP"].main, *sp, "--method", "preadd", "--transitions", "0")
    assert code == 0, printed.err
    beside = json.loads((trained / "results/Steering_SP-valid/steering.json").read_text())["pieces"]["tiny (preadd)"]
    assert (beside["prefix"], beside["alphas"]) == ("O villain", [0.0, 0.4])


def test_a_classifier_joins_model_arithmetic(sp, trained, capsys):
    argv = [*sp, "--transitions", "0", "--alphas", "0.5", "--classifier", "ckpt/sp_classifier"]
    code, printed = outcome(capsys, tune_rivals.SCRIPTS["SP"].main, *argv, "--method", "model-arithmetic")
    assert code == 0, printed.err
    assert "tiny (model-arithmetic with a classifier)" in printed.out
    code, printed = outcome(capsys, tune_rivals.SCRIPTS["SP"].main, *argv, "--method", "icv")
    assert_one_line(code, printed, "--classifier: only --method model-arithmetic")


@pytest.mark.parametrize(
    ("script", "argv", "message"),
    [
        (compare, ["XY"], "XY: no such data set here; choose of SP, RTP_split, PII_synth"),
        (compare, ["SP", "--source", "there"], "--source there: must be DATASET=PATH, with one of SP"),
        (compare, ["SP", "PII_synth", "--sae", "x"], "--sae is for one data set"),
        (compare, ["SP", "--sae", "nowhere"], "nowhere"),
        (tune_rivals, ["SP", "--split", "valid"], "--split valid: methods are compared there; tune on train"),
        (tune_rivals, ["SP", "--method", "nice"], "invalid choice: 'nice'"),
    ],
)
def test_bad_options_are_one_line(work, capsys, script, argv, message):
    code, printed = outcome(capsys, script.main, *argv)
    assert_one_line(code, printed, message)


def test_damaged_settings_are_one_line(sp, trained, capsys):
    (trained / "tuned").mkdir()
    (trained / "tuned/preadd-SP.json").write_text('{"model": "tiny"}')
    code, printed = outcome(capsys, tune_rivals.SCRIPTS["SP"].main, *sp, "--method", "preadd")
    assert_one_line(code, printed, "preadd-SP.json: missing key(s)")
