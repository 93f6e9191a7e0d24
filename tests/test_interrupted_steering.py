"""Killed while it generates, scores or judges, the same command ends with the same files, and nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eval import Steering_SP
from tests.counting_server import counting_server
from tests.scripts import outcome
from train import sp_classifier
from utils.judges.judge import KEY

ROOT = Path(__file__).parents[1]


@pytest.fixture
def processes(monkeypatch, trained):
    """Starts scripts in the working folder; all are gone at the end."""
    monkeypatch.setenv(KEY, "k")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.steering_process"]
    process: Any = subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield process
    process.stdin.close()
    process.wait(30)


def start(processes, script, argv):
    processes.stdin.write(json.dumps({"script": script, "argv": [str(word) for word in argv]}) + "\n")
    processes.stdin.flush()
    return int(processes.stdout.readline())


def status(processes):
    return os.waitstatus_to_exitcode(int(processes.stdout.readline()))


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it never came so far")


def n_lines(folder, pattern):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob(pattern))


def files(folder):
    """The tables, byte by byte, and what the logs hold, in any order."""
    found = {path.name: path.read_bytes() for path in folder.rglob("*.csv")}
    return found | {path.name: sorted(path.read_text().splitlines()) for path in folder.rglob("*.jsonl")}


def argv(tiny_llama, out):
    base = ["--sae", "ckpt/tiny_s1", "--model-path", tiny_llama.folder, "--rows", "1", "--out", out]
    return [*base, "--alphas", "-1", "1", "--max-new-tokens", "24", "--transitions", "1"]


def test_killed_while_generating_and_scoring(processes, trained, tiny_llama, capsys):
    assert outcome(capsys, sp_classifier.main)[0] == 0
    assert outcome(capsys, Steering_SP.main, *argv(tiny_llama, "whole"))[0] == 0
    n_completions = n_lines(trained / "whole", "pieces/*completions.jsonl")
    killed = trained / "killed"
    for pattern, count in [("pieces/*completions.jsonl", 1), ("pieces/*completions.jsonl", n_completions // 2)]:
        child = start(processes, "eval.Steering_SP", argv(tiny_llama, "killed"))
        wait_for(lambda p=pattern, c=count: n_lines(killed, p) >= c)
        os.kill(child, signal.SIGKILL)
        assert status(processes) == -signal.SIGKILL
    assert n_lines(killed, "pieces/*completions.jsonl") < n_completions
    child = start(processes, "eval.Steering_SP", argv(tiny_llama, "killed"))
    wait_for(lambda: n_lines(killed, "scores/style.jsonl") >= 1)
    os.kill(child, signal.SIGKILL)
    status(processes)
    start(processes, "eval.Steering_SP", argv(tiny_llama, "killed"))
    assert status(processes) == 0
    assert files(killed) == files(trained / "whole")


def test_killed_while_judging_no_call_is_repeated(processes, trained, tiny_llama, capsys):
    assert outcome(capsys, sp_classifier.main)[0] == 0
    assert outcome(capsys, Steering_SP.main, *argv(tiny_llama, "made"))[0] == 0
    table = trained / "made/completions/ckpt__tiny_s1__constant.csv"
    verdict = json.dumps({"reason": "", "result": "draw"})
    held: list[str] = []

    def answer(question):
        if len(server.asked) > 6 and not held:
            held.append(question)
            return "hang"  # this one is under way when the script is killed, and never answered
        return verdict

    with counting_server(answer) as server:
        win_rate = [table, table, "--alpha", 1, 0, "--task", "sp", "--judge-url", server.url, "--judge-model", "m"]
        win_rate += ["--judge-parallel", "1"]
        child = start(processes, "eval.WinRate", win_rate)
        wait_for(lambda: held)
        assert n_lines(trained, "results/WinRate-sp-llm/judge.jsonl") == 6
        os.kill(child, signal.SIGKILL)
        assert status(processes) == -signal.SIGKILL
        start(processes, "eval.WinRate", win_rate)
        assert status(processes) == 0
    assert {question: times for question, times in server.asked.items() if times > 1} == {held[0]: 2}
