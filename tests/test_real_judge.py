"""A real judge: SmolLM2 behind `transformers serve` on 127.0.0.1. It judges badly, but it answers as servers do."""

import socket
import subprocess
import sys
import time

import httpx
import pandas as pd
import pytest

from eval import WinRate
from tests.scripts import outcome
from utils.completions import write_completions
from utils.judges.judge import KEY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    """The address and the model's name; the server is stopped afterwards."""
    pytest.importorskip("fastapi", reason="needs the group serving: make test-slow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(smollm2.folder)]
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=out, stderr=out)
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()[-2000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        else:
            pytest.fail(f"no server: {log.read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}/v1", str(smollm2.folder)
    finally:
        process.terminate()
        process.wait(30)


def test_pairs_are_judged_and_every_answer_is_counted(server, work, capsys, monkeypatch):
    monkeypatch.setenv(KEY, "any word")
    url, model = server
    prompts = [f"How do you fare , good sir {i} ?" for i in range(2)]
    for name, texts in (("a", ["I prithee , leave me ."] * 2), ("b", ["I am fine , thanks ."] * 2)):
        table = pd.DataFrame({"prompt": prompts, "completion": texts})
        write_completions(work / f"{name}.csv", table, {})
    argv = ["a.csv", "b.csv", "--task", "sp", "--judge-url", url, "--judge-model", model, "--judge-timeout", "300"]
    argv += ["--judge-max-tokens", "120", "--judge-parallel", "1"]
    code, printed = outcome(capsys, WinRate.main, *argv)
    assert code == 0, printed.err
    (row,) = pd.read_csv(work / "results/WinRate-sp-llm/winrate.csv").to_dict("records")
    assert row["pairs"] == 2
    assert "0 failed" in printed.out
    answers = (work / "results/WinRate-sp-llm/judge.jsonl").read_text().splitlines()
    assert len(answers) >= 8
    code, printed = outcome(capsys, WinRate.main, *argv)
    assert code == 0, printed.err
    assert "0 call(s) answered" in printed.out
