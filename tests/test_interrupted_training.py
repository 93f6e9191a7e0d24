"""Training that is killed, stopped or poisoned, and shared by two processes: the same SAE in the end."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests.scripts import ROOT
from utils import training
from utils.activation_cache import ActivationCache
from utils.caching import cache_activations
from utils.checkpoint import load_checkpoint, load_resume
from utils.errors import UserError
from utils.train_config import SAE_Train_config
from utils.training import train
from utils.training_core import TrainingCore


@pytest.fixture(scope="module")
def trainer():
    """A process that starts others; see tests/training_process.py."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.training_process"], cwd=ROOT, text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def cache(two_concepts, tiny_llama, tmp_path):
    return ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path / "data"))


@pytest.fixture
def config(cache):
    return SAE_Train_config(
        batch_size=16, ds_path=str(cache.folder), factor=4, k=8, lr=1e-3, max_epochs=16, n_inputs=32,
        activation="topk-sigmoid", lr_decay="linear", aux_k=4, dead_after_tokens=100, early_stopping=15,
    )  # fmt: skip


def start(trainer, config, out, *, rank=0, world_size=1):
    """Start a process that trains; return its number."""
    path = out.with_suffix(".json")
    path.write_text(json.dumps(config.to_dict()))
    Path(f"{out}.exit{rank}").unlink(missing_ok=True)
    trainer.stdin.write(f"{path} {out} {rank} {world_size}\n")
    trainer.stdin.flush()
    return int(trainer.stdout.readline())


def exit_code(out, rank=0, seconds=60.0):
    """Wait for the end of a process that trains, or of the time; return its exit code, None where it has none yet."""
    path = Path(f"{out}.exit{rank}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and (code := path.read_text()):
            return int(code)
        time.sleep(0.01)
    return None


def same_logs(one, other, rtol):
    for name in ("steps.csv", "history.csv", "concepts.csv"):
        tables = [pd.read_csv(folder / name) for folder in (one, other)]
        tables = [table.drop(columns=["tokens_per_second"], errors="ignore") for table in tables]
        pd.testing.assert_frame_equal(tables[0], tables[1], rtol=rtol)


def steps_saved(out):
    state = load_resume(out)
    return int(state.tensors["steps"]) if state else 0


def test_killed_at_random_moments(cache, config, tmp_path, trainer):
    out, rng, moments = tmp_path / "parts", random.Random(0), set()
    for _ in range(6):
        before, wanted = steps_saved(out), rng.randint(1, 40)
        process = start(trainer, config, out)
        while steps_saved(out) < before + wanted and exit_code(out, seconds=0.001) is None:
            pass
        time.sleep(rng.uniform(0, 0.1))  # in the middle of whatever it does
        os.kill(process, signal.SIGKILL)
        moments.add(steps_saved(out))
    assert len(moments) == 6  # it did go on each time
    start(trainer, config, out)
    start(trainer, config, tmp_path / "whole")
    assert exit_code(out) == exit_code(tmp_path / "whole") == 0
    assert (out / "sae.safetensors").read_bytes() == (tmp_path / "whole/sae.safetensors").read_bytes()
    same_logs(out, tmp_path / "whole", rtol=1e-9)
    assert not list(out.glob(".tmp-*"))


def test_sigterm_saves_and_exits(cache, config, tmp_path, trainer):
    out = tmp_path / "stopped"
    start(trainer, config, tmp_path / "whole")
    process = start(trainer, config, out)
    while steps_saved(out) == 0:
        assert exit_code(out, seconds=0.01) is None
    os.kill(process, signal.SIGTERM)
    assert exit_code(out) == 143
    state = load_resume(out)
    assert state is not None
    with pytest.raises(UserError, match="not finished"):
        load_checkpoint(out)
    start(trainer, config, out)
    assert exit_code(out) == 0
    assert exit_code(tmp_path / "whole") == 0
    assert (out / "sae.safetensors").read_bytes() == (tmp_path / "whole/sae.safetensors").read_bytes()


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_two_processes_learn_what_one_does(cache, config, tmp_path, trainer, accumulation_steps):
    config = dataclasses.replace(config, accumulation_steps=accumulation_steps, max_epochs=4, early_stopping=0)
    out = tmp_path / "two"
    for rank in (0, 1):
        start(trainer, config, out, rank=rank, world_size=2)
    train(config, cache, tmp_path / "one")
    assert [exit_code(out, rank) for rank in (0, 1)] == [0, 0]
    one, two = (load_file(folder / "sae.safetensors") for folder in (tmp_path / "one", out))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    same_logs(tmp_path / "one", out, rtol=1e-4)


def test_batches_that_processes_cannot_share_are_refused(cache, config):
    with pytest.raises(UserError, match="batch_size 16 cannot be shared evenly by 3 processes"):
        TrainingCore(config, cache, 1.0, 0, world_size=3)


def test_a_step_that_is_no_number_is_named_and_what_was_good_is_kept(cache, config, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_SECONDS_BETWEEN_SAVES", -1)
    monkeypatch.setattr(training, "_SHARE_OF_SAVING", 1e9)
    train(config, cache, tmp_path / "whole")
    original, bad_step = TrainingCore.step, 51
    rows = []

    def poisoned(self, batch):
        if self.steps + 1 == bad_step:
            rows.extend(batch.rows_B)
            batch = dataclasses.replace(batch, acts_BD=batch.acts_BD * float("inf"))
        original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCore, "step", poisoned)
        with pytest.raises(UserError) as caught:
            train(config, cache, tmp_path / "bad")
    steps_per_epoch = len(cache.split("train")) // 16
    saved = max(step for step in range(bad_step) if step % 20 == 0 or step % steps_per_epoch == 0)
    assert f"gradient of step {bad_step} is not a finite number" in str(caught.value)
    assert f"the state after step {saved} is kept" in str(caught.value)
    failed = json.loads((tmp_path / "bad/failed_step.json").read_text())
    texts = sorted(set(cache.split("train").text_id_B[rows].tolist()))
    assert failed == {"step": bad_step, "text_ids": texts, "split": "train"}
    train(config, cache, tmp_path / "bad")
    assert (tmp_path / "bad/sae.safetensors").read_bytes() == (tmp_path / "whole/sae.safetensors").read_bytes()
