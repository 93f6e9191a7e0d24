"""The command lines: the whole path on a tiny model, and one line and exit code 2 for every bad input."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file, save_file

from create_data import act_dataset, create_dataset
from eval import FMS_PII, FMS_RTP_SP, SAE_quality
from tests.scripts import ROOT, assert_one_line, outcome, write_config
from train import train_SAE
from utils.sae_export import to_saelens
from utils.sae_loading import load_sae


def test_whole_path_for_sentences(cached, capsys):
    config = write_config(cached)
    for scaling in (0, 1):
        code, printed = outcome(capsys, train_SAE.main, config, "--cond-loss-scaling", scaling)
        assert code == 0, printed.err
        assert f"ckpt/tiny_s{scaling} is ready" in printed.out
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s0", "--sae", "ckpt/tiny_s1")
    assert code == 0, printed.err
    assert "tiny_s0" in printed.out
    folder = cached / "results/FMS_SP-valid-paper"
    table = pd.read_csv(folder / "fms.csv")
    assert set(table["name"]) == {"tiny_s0", "tiny_s1"}
    wanted = {"accs_0", "global", "fms@1", "fms@5", "root_0", "shuffled_fms@1", *(f"local@{p}" for p in range(1, 10))}
    assert wanted <= set(table["measure"])
    assert (folder / "fms.png").stat().st_size > 1000
    assert json.loads((folder / "fms.json").read_text())["settings"]["mode"] == "paper"
    # Again with one of them: it is read back, and the other stays in the table.
    pieces = {path: path.stat().st_mtime_ns for path in (folder / "pieces").iterdir()}
    assert len(pieces) == 2
    assert outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s0/")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "pieces").iterdir()} == pieces
    assert set(pd.read_csv(folder / "fms.csv")["name"]) == {"tiny_s0", "tiny_s1"}
    # Another seed of the scoring is another experiment.
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s0", "--seed", 1)
    assert code == 2
    assert "seed: 0 -> 1" in printed.err
    # An SAE that was trained further is scored anew; what was measured before is kept.
    assert outcome(capsys, train_SAE.main, config, "--max-epochs", 3)[0] == 0
    assert outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1")[0] == 0
    assert len(list((folder / "pieces").iterdir())) == 3


def test_whole_path_for_tokens_names_what_it_leaves_out(work, tiny_llama, two_concepts, capsys):
    for i, text in enumerate(two_concepts.splits["test"]):  # NUMBER never occurs in the test split
        two_concepts.splits["test"][i] = type(text)(text.text, text.spans[:1])
    two_concepts.save(work / "datasets_v2/text/toy")
    argv = ["toy", "1", "tiny", "block", "--model-path", tiny_llama.folder]
    assert outcome(capsys, act_dataset.main, *argv)[0] == 0
    config = write_config(work, ds_path="datasets_v2/tiny-toy-B01-block")
    assert outcome(capsys, train_SAE.main, config)[0] == 0
    for mode in ("paper", "released", "heldout"):
        argv = ["--dataset", "toy", "--sae", "ckpt/tiny_s1", "--mode", mode]
        code, printed = outcome(capsys, FMS_PII.main, *argv)
        assert code == 0, printed.err
        assert "left out: NUMBER (no positive sample)" in printed.out
        assert f"mode {mode}" in printed.out
        table = pd.read_csv(work / f"results/FMS_toy-test-{mode}/fms.csv")
        assert set(table[table["measure"] == "fms@1"]["concept"]) == {"WHO"}


def test_no_concept_to_score_is_one_line(work, tiny_llama, two_concepts, capsys):
    texts = two_concepts.splits["test"]
    texts[:] = [type(text)(text.text) for text in texts]
    two_concepts.save(work / "datasets_v2/text/toy")
    assert outcome(capsys, act_dataset.main, "toy", "1", "tiny", "block", "--model-path", tiny_llama.folder)[0] == 0
    assert outcome(capsys, train_SAE.main, write_config(work, ds_path="datasets_v2/tiny-toy-B01-block"))[0] == 0
    code, printed = outcome(capsys, FMS_PII.main, "--dataset", "toy", "--sae", "ckpt/tiny_s1")
    assert_one_line(code, printed, "no concept can be scored (WHO: no positive sample, NUMBER: no positive sample)")
    assert not (work / "results").exists()


def test_sae_quality_of_ours_and_of_another_format(cached, tiny_llama, capsys):
    assert outcome(capsys, train_SAE.main, write_config(cached))[0] == 0
    to_saelens(load_sae("ckpt/tiny_s1"), cached / "exported")
    argv = ["--dataset", "SP", "--model-path", tiny_llama.folder, "--max-texts", 3]
    argv += ["--sae", "ckpt/tiny_s1", "--sae", "saelens:exported"]
    code, printed = outcome(capsys, SAE_quality.main, *argv)
    assert code == 0, printed.err
    table = pd.read_csv(cached / "results/SAE_quality_SP/quality.csv")
    assert set(table["format"]) == {"guided", "saelens"}
    values = table.pivot_table(index="measure", columns="format", values="value")
    assert values["guided"].to_numpy() == pytest.approx(values["saelens"].to_numpy(), rel=1e-4, abs=1e-5)
    wanted = {"l0", "fvu", "cosine", "dead_latents", "ce_recovered", "kl_recovered", "ce_ablated", "n_tokens"}
    assert wanted <= set(values.index)
    assert (cached / "results/SAE_quality_SP/quality.png").stat().st_size > 1000
    code, printed = outcome(capsys, SAE_quality.main, *argv, "--sae", "nothing:here")
    assert_one_line(code, printed, "unknown format 'nothing'")


def test_seeds_are_averaged(cached, capsys):
    config = write_config(cached)
    saes = []
    for seed in (0, 1):
        assert outcome(capsys, train_SAE.main, config, "--seed", seed, "--out", f"ckpt/seed{seed}")[0] == 0
        saes += ["--sae", f"ckpt/seed{seed}/tiny_s1"]
    _, printed = outcome(capsys, FMS_RTP_SP.main, "SP", *saes)
    assert "±" in printed.out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["XYZ", "1", "tiny", "block"], "unknown data set 'XYZ': choose one of"),
        (["SP", "2", "tiny", "block"], "block 2 is out of range: the model has blocks 0 to 1"),
        (["SP", "-1", "tiny", "block"], "block -1 is out of range"),
        (["SP", "1", "tiny", "head"], "unknown site 'head': choose one of block, mlp, attention"),
        (["SP", "1", "ti/ny", "block"], "MODEL 'ti/ny'"),
        (["SP", "one", "tiny", "block"], "invalid int value: 'one'"),
        (["SP", "1", "tiny", "block", "--max-texts", "0"], "must be a whole number of at least 1, not 0"),
        (["SP", "1", "tiny", "block", "--seed", "-1"], "must be a whole number from 0"),
    ],
)
def test_act_dataset_bad_input(work, sp_folder, tiny_llama, capsys, argv, message):
    source = ["--source", sp_folder] if argv[0] == "SP" else []
    code, printed = outcome(capsys, act_dataset.main, *argv, *source, "--model-path", tiny_llama.folder)
    assert_one_line(code, printed, message)
    assert not list(work.iterdir())


def test_a_cache_is_verified_and_repaired(cached, sp_folder, tiny_llama, capsys):
    argv = ["SP", "1", "tiny", "block"]
    code, printed = outcome(capsys, act_dataset.main, *argv, "--verify")
    assert code == 0
    assert "datasets_v2/tiny-SP-B01-block: all 2 shards are whole" in printed.out
    shard = cached / "datasets_v2/tiny-SP-B01-block/valid/data-00000-of-00001.arrow"
    good = shard.read_bytes()
    shard.write_bytes(good[:-64])
    code, printed = outcome(capsys, act_dataset.main, *argv, "--verify")
    assert_one_line(
        code, printed, "1 damaged (valid/data-00000-of-00001.arrow: its contents do not match its checksum)"
    )
    code, printed = outcome(capsys, act_dataset.main, *argv, "--repair", "--model-path", tiny_llama.folder)
    assert code == 0, printed.err
    assert shard.read_bytes() == good
    code, printed = outcome(capsys, act_dataset.main, "RTP", 1, "tiny", "block", "--verify")
    assert_one_line(code, printed, "tiny-RTP-B01-block: no cached activations there")
    code, printed = outcome(capsys, act_dataset.main, *argv, "--verify", "--repair")
    assert_one_line(code, printed, "not allowed with argument --verify")


def test_the_cluster_file_runs_a_command_that_exists(capsys):
    """The keys that Determined's configuration reference requires, and a command line that our script accepts."""
    config = yaml.safe_load((ROOT / "create_data/act_dataset.yaml").read_text())
    assert {"name", "entrypoint", "resources", "bind_mounts", "searcher"} <= set(config)
    launcher, script = config["entrypoint"].split("python3 create_data/act_dataset.py ")
    assert launcher.strip() == "python3 -m determined.launch.torch_distributed"
    words = script.split()
    mounts = [mount["container_path"] for mount in config["bind_mounts"]]
    assert words[words.index("--out") + 1] in mounts
    code, printed = outcome(capsys, act_dataset.main, *words, "--verify")
    assert_one_line(code, printed, "no cached activations there")


def test_unknown_model_and_missing_folder(work, capsys):
    code, printed = outcome(capsys, act_dataset.main, "PII_synth", 1, "gpt5", "block")
    assert_one_line(code, printed, "unknown model 'gpt5': choose one of llama3,")
    code, printed = outcome(capsys, act_dataset.main, "PII_synth", 1, "m", "block", "--model-path", "nowhere")
    assert_one_line(code, printed, "--model-path nowhere: not a model folder")
    assert not list(work.iterdir())


def test_a_model_without_some_weights_is_refused(work, tiny_llama, sp_folder, capsys):
    folder = work.parent / "lacking"
    shutil.copytree(tiny_llama.folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: w for name, w in weights.items() if "layers.0.mlp" not in name}, folder / "model.safetensors")
    argv = ["SP", 1, "tiny", "block", "--source", sp_folder, "--model-path", folder]
    code, printed = outcome(capsys, act_dataset.main, *argv)
    assert_one_line(code, printed, "3 weight(s) missing or of a wrong shape, such as layers.0.mlp")
    (folder / "model.safetensors").write_bytes(b"cut")
    code, printed = outcome(capsys, act_dataset.main, *argv)
    assert_one_line(code, printed, "the model cannot be loaded")
    (folder / "tokenizer.json").write_text("{}")
    code, printed = outcome(capsys, act_dataset.main, *argv)
    assert_one_line(code, printed, "no usable tokenizer")
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": "wide"}')
    code, printed = outcome(capsys, act_dataset.main, *argv)
    assert_one_line(code, printed, "config.json")
    assert not list(work.glob("datasets_v2/*tiny*"))


def test_an_output_that_cannot_be_written_is_one_line(work, sp_folder, capsys):
    (work / "file").write_text("")
    code, printed = outcome(capsys, create_dataset.main, "SP", "--source", sp_folder, "--out", "file")
    assert_one_line(code, printed, "file")


def test_a_gated_model_says_what_to_do(work, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, printed = outcome(capsys, act_dataset.main, "PII_synth", 1, "llama3", "block")
    assert_one_line(code, printed, "accept the licence at https://huggingface.co/meta-llama/Meta-Llama-3-8B")
    assert "--model-path" in printed.err


def test_fms_bad_input(cached, capsys):
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/none")
    assert_one_line(code, printed, "ckpt/none: no checkpoint there")
    outcome(capsys, train_SAE.main, write_config(cached))
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1", "--split", "test")
    assert_one_line(code, printed, "no split 'test'; it has train, valid")
    code, printed = outcome(capsys, FMS_RTP_SP.main, "RTP", "--sae", "ckpt/tiny_s1")
    assert_one_line(code, printed, "tiny-RTP-B01-block: no cached activations there")
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1", "--mode", "best")
    assert_one_line(code, printed, "invalid choice: 'best'")
    assert not (cached / "results").exists()


def test_create_dataset_bad_input(work, capsys):
    code, printed = outcome(capsys, create_dataset.main, "SP", "--source", "nowhere")
    assert_one_line(code, printed, "--source nowhere: no such file or folder")
    code, printed = outcome(capsys, create_dataset.main, "Poems")
    assert_one_line(code, printed, "unknown data set 'Poems'")
    assert not list(work.iterdir())


def test_scripts_start_from_any_folder(tmp_path):
    for script in ("create_data/act_dataset.py", "train/train_SAE.py", "eval/FMS_PII.py", "eval/demo.py"):
        done = subprocess.run(
            [sys.executable, str(ROOT / script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "example" in done.stdout
