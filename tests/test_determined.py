"""Training as a Determined trial: off the cluster, and on one whose master is a stand-in on this machine."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.scripts import CONFIG, ROOT
from utils.activation_cache import ActivationCache
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.recipes import clear_options
from utils.sae_loading import load_sae
from utils.train_config import load_train_config
from utils.training import train
from utils.training_core import TrainingCore

EXPERIMENT = yaml.safe_load((ROOT / "train/train_SAE_24k_k2048.yaml").read_text())
RECIPES = {"paper": {}, "clear": clear_options("SP")}
CHANGES = {"max_epochs": 12, "lr_decay": "linear", "aux_k": 4, "dead_after_tokens": 100}


@pytest.fixture
def trial_module(monkeypatch, tmp_path):
    pytest.importorskip("determined", reason="determined is not installed: make test-interop")
    import determined
    from determined import constants

    from train import determined_trial

    monkeypatch.setattr(determined._info, "_info", None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))  # where checkpoints go off the cluster
    monkeypatch.setattr(constants, "MANAGED_TRAINING_MODEL_COPY", str(tmp_path / "empty"))  # what checkpoints copy
    (tmp_path / "empty").mkdir()
    return determined_trial


@pytest.fixture
def config_path(cached):
    path = cached / "tiny-l64-b01-k8.json"
    path.write_text(json.dumps(CONFIG | CHANGES))
    return path


@pytest.fixture
def windows(monkeypatch):
    """What each window of steps of all training here measured."""
    rows, original = [], TrainingCore.close_window

    def note(core):
        original(core)
        rows.append({"step": core.steps} | core.window.values())

    monkeypatch.setattr(TrainingCore, "close_window", note)
    return rows


def trained_alone(config_path):
    config = load_train_config(config_path)
    train(config, ActivationCache(config.ds_path), Path("ckpt/alone"))
    return load_file("ckpt/alone/sae.safetensors")


@pytest.mark.interop
def test_off_the_cluster_the_same_losses(trial_module, config_path, windows, tmp_path):
    alone = trained_alone(config_path)
    expected = windows[:]
    windows.clear()
    trial = trial_module.train({"config_path": str(config_path), "cond_loss_scaling": 1})
    assert [row["step"] for row in windows] == [row["step"] for row in expected]
    for row, expected_row in zip(windows, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-5)
    for name, tensor in trial.core.sae.state_dict().items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-6)
    folders = [path.parent for path in (tmp_path / "home").rglob("state_dict.pth")]
    by_epoch = {load_checkpoint(folder).config["epochs_trained"]: folder for folder in folders}
    assert sorted(by_epoch) == [5, 10, 12]
    for ref in (
        str(by_epoch[12]),
        f"determined:{by_epoch[12]}",
        f"determined:{by_epoch[12].parent}/{config_path.stem}_s1",
        f"ckpt/{config_path.stem}_s1",
    ):
        loaded = load_sae(ref).sae
        torch.testing.assert_close(loaded.encoder.weight, trial.core.sae.encoder.weight.detach())
        torch.testing.assert_close(loaded.decoder.weight, trial.core.sae.decoder.weight.detach())


def on_cluster(determined, monkeypatch, master, storage, config_path, *, latest=None, steps=0):
    """Make Determined believe that it runs in a container of a cluster."""
    experiment = EXPERIMENT | {"checkpoint_storage": {"type": "directory", "container_path": str(storage)}}
    hparams = {"config_path": str(config_path), "cond_loss_scaling": 1, "seed": 0}
    trial = determined.TrialInfo(
        trial_id=1, experiment_id=1, trial_seed=0, hparams=hparams, config=experiment, steps_completed=steps,
        trial_run_id=1, debug=False, inter_node_network_interface=None,
    )  # fmt: skip
    info = determined.ClusterInfo(
        master_url=master.url, cluster_id="c", agent_id="a", slot_ids=[0], task_id="t", allocation_id="t.1",
        session_token="secret", task_type="TRIAL", latest_checkpoint=latest, trial_info=trial,
        rendezvous_info=determined.RendezvousInfo(["127.0.0.1"], 0, [1]), resources_info=determined.ResourcesInfo([]),
    )  # fmt: skip
    monkeypatch.setattr(determined._info, "_info", info)
    monkeypatch.setenv("DET_SESSION_TOKEN", "secret")
    monkeypatch.setenv("DET_USER", "somebody")


@pytest.mark.interop
@pytest.mark.parametrize("recipe", RECIPES)
def test_on_a_cluster_preempted_and_resumed(trial_module, config_path, windows, monkeypatch, tmp_path, recipe):
    import determined

    from tests.determined_master import running_master

    config_path.write_text(json.dumps(CONFIG | CHANGES | RECIPES[recipe]))
    alone = trained_alone(config_path)
    expected, steps_per_epoch = windows[:], windows[-1]["step"] // 12
    windows.clear()
    storage = tmp_path / "storage"
    with running_master() as master:
        on_cluster(determined, monkeypatch, master, storage, config_path)
        master.preempt_after = 5 * steps_per_epoch  # the first validation
        monkeypatch.setattr(TrainingCore, "step", slow_after(TrainingCore.step, master.preempt_after))
        trial_module.main([])
        stopped_at = max(checkpoint.metadata["steps_completed"] for checkpoint in master.checkpoints.values())
        assert 5 * steps_per_epoch <= stopped_at < 12 * steps_per_epoch
        assert ("POST", "/api/v1/allocations/t.1/signals/ack_preemption") in master.told
        newest = max(master.checkpoints.values(), key=lambda checkpoint: checkpoint.metadata["steps_completed"])

        master.preempt_after = None
        on_cluster(determined, monkeypatch, master, storage, config_path, latest=newest.uuid, steps=stopped_at)
        trial_module.main([])
    assert [row["step"] for row in windows] == [row["step"] for row in expected]
    for row, expected_row in zip(windows, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-5)
    final = max(master.checkpoints.values(), key=lambda checkpoint: checkpoint.metadata["steps_completed"])
    loaded = load_sae(str(storage / final.uuid))
    assert loaded.origin["concepts"] == ["Shakespearean"]
    for name, tensor in loaded.sae.state_dict().items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-6)
    groups = {group for group, _, _ in master.metrics}
    assert groups == {"training", "validation"}
    validated = [(steps, means) for group, steps, means in master.metrics if group == "validation"]
    assert [steps for steps, _ in validated] == [steps_per_epoch * epoch for epoch in (5, 10, 12)]
    assert {"validation_loss", "fvu", "concept_auroc", "auroc_Shakespearean", "dead_latents"} <= validated[0][1].keys()
    trained = [means for group, _, means in master.metrics if group == "training"]
    assert {"loss", "reconstruction_loss_labelled", "grad_norm"} <= trained[0].keys()


def slow_after(step, first):
    """Let the request to stop arrive before the trial is at its end."""

    def slowed(core, *args, **kwargs):
        step(core, *args, **kwargs)
        if core.steps > first:
            threading.Event().wait(0.02)

    return slowed


@pytest.mark.interop
def test_the_best_checkpoint_of_a_trial_is_found(trial_module, config_path, tmp_path):
    trial_module.train({"config_path": str(config_path), "cond_loss_scaling": 0})
    losses = {}
    for path in (tmp_path / "home").rglob("state_dict.pth"):
        losses[load_checkpoint(path.parent).config["metrics"]["validation_loss"]] = path.parent
    assert len(losses) == 3
    best = load_sae(f"determined:{path.parent.parent}/{config_path.stem}_s0@best").sae
    expected = load_checkpoint(losses[min(losses)]).sae
    torch.testing.assert_close(best.encoder.weight, expected.encoder.weight)
    metrics = load_checkpoint(losses[min(losses)]).config["metrics"]
    assert metrics["validation_loss"] == metrics["reconstruction_loss"]  # vanilla: no concept loss in it


@pytest.mark.interop
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_of_a_trial_learn_what_one_does(trial_module, config_path, tmp_path, cached, recipe):
    config_path.write_text(json.dumps(CONFIG | CHANGES | RECIPES[recipe]))
    alone = trained_alone(config_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    script, group = ROOT / "tests/determined_process.py", tmp_path / "group"
    processes = [
        subprocess.Popen([sys.executable, script, config_path, group, str(rank)], cwd=cached, env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=200) for process in processes] == [0, 0]
    checkpoints = {}
    for path in (tmp_path / "home").rglob("config.json"):
        if (path.parent / "sae.safetensors").exists():
            checkpoints[load_checkpoint(path.parent).config["epochs_trained"]] = load_checkpoint(path.parent)
    for name, tensor in checkpoints[12].sae.state_dict().items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=1e-5)


@pytest.mark.interop
def test_what_a_trial_refuses(trial_module, config_path):
    with pytest.raises(UserError, match="hyperparameters: missing cond_loss_scaling"):
        trial_module.train({"config_path": str(config_path)})
    config_path.write_text(json.dumps(CONFIG | {"early_stopping": 2}))
    with pytest.raises(UserError, match="early_stopping is not for a cluster"):
        trial_module.train({"config_path": str(config_path), "cond_loss_scaling": 1})
    with pytest.raises(UserError, match=r"CONFIG.json: needed off the cluster"):
        trial_module.main([])


def test_the_experiment_file():
    assert EXPERIMENT["entrypoint"].split()[-1] == "train/determined_trial.py"
    assert load_train_config(ROOT / EXPERIMENT["hyperparameters"]["config_path"]).sae.n_latents == 24_576
    assert EXPERIMENT["hyperparameters"]["cond_loss_scaling"] == {"type": "categorical", "vals": [0, 1]}
    assert EXPERIMENT["searcher"]["name"] == "grid"
    assert EXPERIMENT["searcher"]["metric"] == "validation_loss"
    assert "max_length" not in EXPERIMENT["searcher"]  # 0.38 takes it from the program
    assert [mount["container_path"] for mount in EXPERIMENT["bind_mounts"]] == ["datasets_v2", "ckpt"]
    ignored = (ROOT / ".detignore").read_text().split()
    assert {".venv/", "datasets_v2/", "ckpt/", ".git/"} <= set(ignored)
