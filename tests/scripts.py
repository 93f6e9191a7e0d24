"""What the tests of the command lines share: a working folder, a tiny cache, and how a script ended."""

import json
import re
from pathlib import Path

import pytest

from create_data import act_dataset
from train import train_SAE
from utils import cli

ROOT = Path(__file__).parents[1]
CONFIG = {
    "batch_size": 32, "ds_path": "datasets_v2/tiny-SP-B01-block", "factor": 2, "k": 8, "lr": 0.01, "max_epochs": 2,
    "n_inputs": 32, "activation": "topk-sigmoid",
}  # fmt: skip


def outcome(capsys, main, *argv):
    """Run a script in this process; return its exit code and what it printed."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        cli.run(main, [str(word) for word in argv])
    return exit_.value.code, capsys.readouterr()


@pytest.fixture
def work(tmp_path, monkeypatch, sp_folder):
    """An empty working folder, as a user has it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def cached(work, sp_folder, tiny_llama, capsys):
    argv = ["SP", "1", "tiny", "block", "--source", sp_folder, "--model-path", tiny_llama.folder]
    assert outcome(capsys, act_dataset.main, *argv)[0] == 0
    return work


def write_config(work, **changes):
    path = work / "tiny.json"
    path.write_text(json.dumps({key: value for key, value in (CONFIG | changes).items() if value is not None}))
    return path


@pytest.fixture
def trained(cached, capsys):
    """A vanilla and a guided SAE on sentences."""
    for scaling in (0, 1):
        assert outcome(capsys, train_SAE.main, write_config(cached), "--cond-loss-scaling", scaling)[0] == 0
    return cached


@pytest.fixture
def tokens(work, tiny_llama, two_concepts, capsys):
    """A vanilla and a guided SAE on tokens of two concepts, with one text that holds markup."""
    text = two_concepts.splits["test"][0]
    two_concepts.splits["test"][0] = type(text)(text.text + " <script>alert(1)</script>", text.spans)
    two_concepts.save(work / "datasets_v2/text/toy")
    assert outcome(capsys, act_dataset.main, "toy", 1, "tiny", "block", "--model-path", tiny_llama.folder)[0] == 0
    config = write_config(work, ds_path="datasets_v2/tiny-toy-B01-block")
    for scaling in (0, 1):
        assert outcome(capsys, train_SAE.main, config, "--cond-loss-scaling", scaling)[0] == 0
    return work


@pytest.fixture
def toxic(work, tiny_llama, capsys):
    """Activations of texts with scores, and an SAE on them."""
    scores = [0.9, 0.01, 0.8, 0.02, 0.6, 0.3, 0.95, 0.0, 0.85, 0.04] * 4
    records = [
        {"prompt": {"text": f"You are {word} {i} ", "toxicity": s}, "continuation": {"text": "night", "toxicity": s}}
        for i, s in enumerate(scores)
        for word in [("false" if s >= 0.5 else "sweet")]
    ]
    (work / "rtp.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    argv = ["RTP", 1, "tiny", "block", "--source", "rtp.jsonl", "--model-path", tiny_llama.folder]
    assert outcome(capsys, act_dataset.main, *argv)[0] == 0
    assert outcome(capsys, train_SAE.main, write_config(work, ds_path="datasets_v2/tiny-RTP-B01-block"))[0] == 0
    return work


def assert_one_line(code, printed, message):
    lines = [line for line in printed.err.splitlines() if line and "tok/s" not in line]
    assert code == 2, printed
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def read_token_view(path):
    """Return what a tokens.html holds."""
    found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return json.loads(found[1])
