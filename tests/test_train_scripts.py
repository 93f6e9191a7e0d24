"""Run configs on the command line: what is trained, what is refused, and how grids of them are made."""

import json
from pathlib import Path

import pytest

from eval import FMS_RTP_SP
from llama3_SAE import gen_config
from tests.scripts import CONFIG, ROOT, assert_one_line, outcome, write_config
from train import train_SAE
from utils.train_config import load_train_config


def test_shorthand_name_of_a_config_is_held_against_its_contents(cached, capsys):
    path = cached / "tiny-l64-b01-k9.json"
    path.write_text(json.dumps(CONFIG))
    code, printed = outcome(capsys, train_SAE.main, path)
    assert code == 2
    assert "its name says k 9, its contents say 8" in printed.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 65}, "k: 65 is more than the 64 latents"),
        ({"n_inputs": 16, "k": 4}, "n_inputs is 16, but the activations in datasets_v2/tiny-SP-B01-block are 32 wide"),
        ({"k": None}, "missing key(s) k"),
        ({"colour": "red"}, "unknown key(s) colour"),
        ({"batch_size": 10_000}, "batch_size 10000 is more than the"),
        ({"batch_size": "many"}, "batch_size: must be a whole number"),
        ({"lr": -1}, "lr: must be a positive number"),
        ({"activation": "softmax"}, "'softmax' is unknown"),
        ({"ds_path": "nowhere"}, "nowhere: no cached activations there"),
    ],
)
def test_train_bad_config(cached, capsys, changes, message):
    code, printed = outcome(capsys, train_SAE.main, write_config(cached, **changes))
    assert_one_line(code, printed, message)
    assert not (cached / "ckpt").exists()


@pytest.mark.parametrize(
    ("contents", "message"),
    [("{", "tiny.json: not valid JSON, line 1"), ("[]", "must hold a JSON object"), (None, "tiny.json: no such file")],
)
def test_train_malformed_config(work, capsys, contents, message):
    path = work / "tiny.json"
    if contents is not None:
        path.write_text(contents)
    code, printed = outcome(capsys, train_SAE.main, path)
    assert_one_line(code, printed, message)


def test_configs_are_generated_from_a_grid(work, capsys):
    argv = ["--model", "llama3_70B", "--blocks", 3, 62, "--factors", 2, 3, "--k", 32, "--out", "configs"]
    code, printed = outcome(capsys, gen_config.main, *argv)
    assert code == 0, printed.err
    names = sorted(path.name for path in Path("configs").iterdir())
    assert names == [f"llama3_70B-l{n}-b{block}-k32.json" for n in (16384, 24576) for block in ("03", "62")]
    config = load_train_config(Path("configs") / names[-1])
    assert (config.n_inputs, config.factor, config.ds_path) == (8192, 3, "datasets_v2/llama3_70B-RTP_split-B62-block")
    assert outcome(capsys, gen_config.main, *argv)[0] == 0  # the same again
    code, printed = outcome(capsys, gen_config.main, *argv, "--lr", 1e-3)
    assert_one_line(code, printed, "is there with other contents")
    for wrong, message in (
        (["--blocks", 80], "block 80 is out of range: the model has blocks 0 to 79"),
        (["--k", 99_999], "k: 99999 is more than the 16384 latents"),
        (["--lr", -1], "lr: must be a positive number"),
    ):
        code, printed = outcome(capsys, gen_config.main, "--model", "llama3_70B", "--factors", 2, "--out", "no", *wrong)
        assert_one_line(code, printed, message)
    assert not Path("no").exists()


def test_a_pretrained_sae_is_not_trained(work, capsys):
    path = ROOT / "llama3_SAE/SAE_config/llama3-l131072-b11-k192.json"
    code, printed = outcome(capsys, train_SAE.main, path)
    assert_one_line(code, printed, "load it with load_sae('sparsify:EleutherAI/sae-llama-3-8b-32x/layers.11')")
    (work / "p.json").write_text(path.read_text().replace('"lr": 0', '"lr": 0.1'))
    code, printed = outcome(capsys, train_SAE.main, "p.json")
    assert_one_line(code, printed, "is a pretrained SAE; its batch_size must be -1 and its lr 0")


def test_every_shipped_config_is_valid():
    configs = list(ROOT.glob("*_SAE/SAE_config/*.json"))
    assert configs
    for path in configs:
        load_train_config(path)


def test_damaged_json_is_one_line(cached, capsys):
    outcome(capsys, train_SAE.main, write_config(cached))
    (cached / "ckpt/tiny_s1/config.json").write_text('{"format": 1}')
    code, printed = outcome(capsys, FMS_RTP_SP.main, "SP", "--sae", "ckpt/tiny_s1")
    assert_one_line(code, printed, "ckpt/tiny_s1/config.json: missing key(s) block")
    (cached / "datasets_v2/tiny-SP-B01-block/manifest.json").write_text('{"format": 99}')
    code, printed = outcome(capsys, train_SAE.main, cached / "tiny.json")
    assert_one_line(code, printed, "manifest.json: missing key(s)")
