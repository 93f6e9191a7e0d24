"""What the tests of the command lines share: a working folder, a tiny cache, and how a script ended."""

import json
import re
from pathlib import Path

import pytest

from create_data import act_dataset
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
