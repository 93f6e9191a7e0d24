"""The evaluations by their command lines, on a tiny model: what they write, and one line for what they refuse."""

import shutil

import pandas as pd
import pytest

from create_data import act_dataset
from eval import FMS_PII, FMS_RTP_SP, Detection_PII, Features_PII, Features_RTP_SP
from tests.scripts import assert_one_line, outcome, read_token_view, write_config
from train import train_SAE
from utils.sae_export import to_saelens
from utils.sae_loading import load_sae


def test_toxicity_has_three_sets_of_samples(toxic, capsys):
    counts = {}
    for samples in ("labels", "balanced", "extreme"):
        argv = ["RTP", "--split", "train", "--sae", "ckpt/tiny_s1", "--samples", samples, "--mode", "paper"]
        code, printed = outcome(capsys, FMS_RTP_SP.main, *argv)
        assert code == 0, printed.err
        name = "FMS_RTP-train-paper" if samples == "labels" else f"FMS_RTP-{samples}-train-paper"
        values = pd.read_csv(toxic / "results" / name / "fms.csv").set_index("measure")["value"]
        counts[samples] = values[["n_samples", "n_positives"]].tolist()
        assert values["fms@1_low"] <= values["fms@1"] <= values["fms@1_high"]
        if samples == "balanced":
            assert values["accuracy_depth_0"] == 0.5
    assert counts["labels"] == counts["balanced"]
    assert counts["extreme"][0] < counts["labels"][0]  # 0.6 and 0.3 are neither
    code, printed = outcome(
        capsys, Features_RTP_SP.main, "RTP", "--split", "train", "--sae", "ckpt/tiny_s1", "--model-path", toxic.parent
    )
    assert_one_line(code, printed, "not a model folder")


def test_features_of_toxicity_follow_the_scores(toxic, tiny_llama, capsys):
    argv = ["RTP", "--split", "train", "--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder]
    code, printed = outcome(capsys, Features_RTP_SP.main, *argv)
    assert code == 0, printed.err
    folder = toxic / "results/Features_RTP-train"
    values = pd.read_csv(folder / "features.csv").set_index("measure")["value"]
    assert values["latent"] == 0
    texts = pd.read_parquet(next(folder.glob("pieces/*.texts.parquet")))
    assert values["text_spearman_value"] == pytest.approx(texts["value"].corr(texts["score"], method="spearman"))
    assert values["text_n"] == len(texts) == texts["text_id"].nunique()
    for kind in ("png", "svg"):
        assert (folder / f"calibration-toxicity.{kind}").stat().st_size > 1000


def test_features_of_sentences(trained, tiny_llama, capsys):
    argv = ["SP", "--sae", "ckpt/tiny_s0", "--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder]
    code, printed = outcome(capsys, Features_RTP_SP.main, *argv)
    assert code == 0, printed.err
    assert "text_auroc_value" in printed.out
    folder = trained / "results/Features_SP-valid"
    table = pd.read_csv(folder / "features.csv")
    assert set(table["name"]) == {"tiny_s0", "tiny_s1"}
    assert (folder / "densities-1-tiny_s1.svg").exists()
    before = {path: path.stat().st_mtime_ns for path in (folder / "pieces").iterdir()}
    assert outcome(capsys, Features_RTP_SP.main, *argv)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "pieces").iterdir()} == before
    shown = ["".join(text["pieces"]) for text in read_token_view(folder / "tokens.html")["texts"]]
    assert "Wherefore dost thou weep at night ? 2" in shown


def test_features_of_tokens(tokens, tiny_llama, capsys):
    argv = ["--dataset", "toy", "--sae", "ckpt/tiny_s0", "--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder]
    code, printed = outcome(capsys, Features_PII.main, *argv)
    assert code == 0, printed.err
    folder = tokens / "results/Features_toy-test"
    table = pd.read_csv(folder / "features.csv")
    assert set(table["concept"]) == {"WHO", "NUMBER"}
    assert "<script>alert" not in (folder / "tokens.html").read_text()
    assert len(list(folder.glob("pieces/*.tokens.parquet"))) == 2


def test_detection(tokens, tiny_llama, capsys):
    argv = ["--dataset", "toy", "--sae", "ckpt/tiny_s0", "--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder]
    code, printed = outcome(capsys, Detection_PII.main, *argv)
    assert code == 0, printed.err
    folder = tokens / "results/Detection_toy-test"
    table = pd.read_csv(folder / "detection.csv")
    assert set(table["kind"]) == {"concept latents", "probe on latents", "probe on activations", "presidio"}
    overall = table[table["class"] == "all"].set_index(["name", "measure"])["value"]
    assert overall["probe on activations of block 1", "accuracy"] > 0.7
    matrices = list(folder.glob("pieces/*.confusion.csv"))
    assert len(matrices) == 6
    n_tokens = {int(pd.read_csv(path, index_col=0).to_numpy().sum()) for path in matrices}
    assert len(n_tokens) == 1
    for figure in ("f1", "confusion-0"):
        assert (folder / f"{figure}.svg").stat().st_size > 1000
    code, printed = outcome(capsys, Detection_PII.main, *argv, "--train-split", "valid")
    assert_one_line(code, printed, "no split 'valid'; it has train, test")


def test_any_format_over_several_blocks(trained, tiny_llama, sp_folder, capsys):
    argv = ["SP", 0, "tiny", "block", "--source", sp_folder, "--model-path", tiny_llama.folder]
    assert outcome(capsys, act_dataset.main, *argv)[0] == 0
    to_saelens(load_sae("ckpt/tiny_s1"), trained / "exported")
    sweep = ["SP", "--sae", "saelens:exported", "--model", "tiny", "--site", "block", "--block", 0, 1]
    code, printed = outcome(capsys, FMS_RTP_SP.main, *sweep)
    assert code == 0, printed.err
    folder = trained / "results/FMS_SP-valid-paper"
    table = pd.read_csv(folder / "fms.csv")
    assert table.groupby("sae")["block"].first().to_dict() == {"saelens:exported@B00": 0, "saelens:exported@B01": 1}
    for figure in ("fms", "depth", "removed", "blocks"):
        assert (folder / f"{figure}.svg").stat().st_size > 1000


def test_fms_of_texts_without_stored_activations(trained, tiny_llama, capsys):
    stored = ["SP", "--sae", "ckpt/tiny_s1", "--out", "stored"]
    assert outcome(capsys, FMS_RTP_SP.main, *stored)[0] == 0
    live = ["SP", "--sae", "ckpt/tiny_s1", "--out", "live", "--live", "--model-path", tiny_llama.folder]
    code, printed = outcome(capsys, FMS_RTP_SP.main, *live)
    assert code == 0, printed.err
    scores = [pd.read_csv(trained / name / "fms.csv").set_index("measure")["value"] for name in ("stored", "live")]
    assert scores[0]["n_samples"] == scores[1]["n_samples"]
    assert scores[0]["fms@1"] == pytest.approx(scores[1]["fms@1"], abs=0.2)  # six texts, stored in half precision


def test_live_results_are_those_of_their_block(trained, tiny_llama, capsys):
    to_saelens(load_sae("ckpt/tiny_s1"), trained / "exported")
    roots = []
    for block in (0, 1):
        argv = ["SP", "--live", "--sae", "saelens:exported", "--model", "tiny", "--site", "block", "--block", block]
        code, printed = outcome(capsys, FMS_RTP_SP.main, *argv, "--model-path", tiny_llama.folder)
        assert code == 0, printed.err
        table = pd.read_csv(trained / "results/FMS_SP-valid-paper/fms.csv")
        roots.append(table[(table["block"] == block) & (table["measure"] == "accuracy_depth_1")]["value"].tolist())
    assert [len(own) for own in roots] == [1, 1]
    assert set(table["sae"]) == {"saelens:exported@B00", "saelens:exported@B01"}


def test_units_do_not_share_results(trained, tiny_llama, capsys):
    for first, second in ((FMS_RTP_SP, FMS_PII), (Features_RTP_SP, Features_PII)):
        more = [] if first is FMS_RTP_SP else ["--model-path", tiny_llama.folder]
        assert outcome(capsys, first.main, "SP", "--sae", "ckpt/tiny_s1", *more, "--out", "shared")[0] == 0
        code, printed = outcome(
            capsys, second.main, "--dataset", "SP", "--sae", "ckpt/tiny_s1", *more, "--out", "shared"
        )
        assert_one_line(code, printed, "shared holds results of other settings")


def test_only_the_same_is_taken_for_seeds(trained, capsys):
    config = write_config(trained, factor=3)
    assert outcome(capsys, train_SAE.main, config, "--out", "wide")[0] == 0
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1", "--sae", "wide/tiny_s1")
    assert code == 0, printed.err
    table = pd.read_csv(trained / "results/FMS_SP-valid-paper/fms.csv")
    assert set(table["name"]) == {"ckpt/tiny_s1", "wide/tiny_s1"}
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1", "--sae", trained / "ckpt/tiny_s1")
    assert_one_line(code, printed, "are the same SAE")
    twice = ["--sae", "ckpt/tiny_s1", "--sae", "./ckpt/tiny_s1", "--sae", "guided:ckpt/tiny_s1/"]
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", *twice, "--out", "once")
    assert code == 0, printed.err
    assert pd.read_csv(trained / "once/fms.csv")["sae"].unique().tolist() == ["ckpt/tiny_s1"]


def test_other_weights_than_those_of_the_activations_are_refused(trained, tiny_gemma2, capsys):
    argv = ["SP", "--sae", "ckpt/tiny_s1", "--model-path", tiny_gemma2.folder]
    code, printed = outcome(capsys, Features_RTP_SP.main, *argv)
    assert_one_line(code, printed, "other weights than datasets_v2/tiny-SP-B01-block comes from")
    code, printed = outcome(capsys, FMS_RTP_SP.main, *argv, "--live")
    assert_one_line(code, printed, "other weights than ckpt/tiny_s1 was trained on")
    code, printed = outcome(capsys, FMS_RTP_SP.main, *argv)
    assert_one_line(code, printed, "--max-texts and --model-path go with --live")


def test_a_lost_piece_is_measured_anew(trained, capsys):
    argv = ["SP", "--sae", "ckpt/tiny_s0", "--sae", "ckpt/tiny_s1"]
    assert outcome(capsys, FMS_RTP_SP.main, *argv)[0] == 0
    shutil.rmtree(trained / "results/FMS_SP-valid-paper/pieces")
    assert outcome(capsys, FMS_RTP_SP.main, *argv[:3])[0] == 0
    assert set(pd.read_csv(trained / "results/FMS_SP-valid-paper/fms.csv")["name"]) == {"tiny_s0"}


def test_few_samples_are_warned_of(trained, caplog, capsys):
    code, _ = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1")
    assert code == 0
    assert "ckpt/tiny_s1, Shakespearean: only 3 samples of one class: see the interval" in caplog.text


@pytest.mark.parametrize("script", [FMS_RTP_SP, Features_RTP_SP])
def test_what_does_not_fit_together_is_one_line(trained, script, capsys):
    argv = ["SP", "--sae", "ckpt/tiny_s1"]
    code, printed = outcome(capsys, script.main, *argv, "--model", "other")
    assert_one_line(code, printed, "ckpt/tiny_s1 was trained on model tiny; --model other is another")
    code, printed = outcome(capsys, script.main, *argv, "--block", 0)
    assert_one_line(code, printed, "ckpt/tiny_s1 was trained on block 1; --block 0 is another")
    code, printed = outcome(capsys, script.main, "SP", "--sae", "ckpt/{layer}", "--block", 0)
    assert_one_line(code, printed, "only {block} or {block:02} may stand in braces")
    to_saelens(load_sae("ckpt/tiny_s1"), trained / "exported")
    code, printed = outcome(capsys, script.main, "SP", "--sae", "saelens:exported", "--model", "wide", "--block", 1)
    assert_one_line(code, printed, "wide-SP-B01-block: no cached activations there")
    config = trained / "ckpt/tiny_s1/config.json"
    config.write_text(config.read_text().replace("Shakespearean", "Miltonic"))
    code, printed = outcome(capsys, script.main, *argv)
    assert_one_line(
        code, printed, "has other concepts than ckpt/tiny_s1 was guided by (Shakespearean instead of Miltonic)"
    )
    assert not (trained / "results").exists()


def test_scores_are_needed_for_extremes(trained, capsys):
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1", "--samples", "extreme")
    assert_one_line(code, printed, "these texts have no scores; only RTP and RTP_split have")


def test_texts_must_be_those_of_the_activations(tokens, tiny_llama, capsys):
    argv = ["--dataset", "toy", "--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder]
    (tokens / "datasets_v2/text/toy").rename(tokens / "moved")
    code, printed = outcome(capsys, Features_PII.main, *argv)
    assert_one_line(code, printed, "datasets_v2/text/toy: no texts there")
    assert outcome(capsys, FMS_PII.main, *argv[:4])[0] == 0  # needs none
