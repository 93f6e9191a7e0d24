"""Training against a plain re-statement of the paper's recipe; resuming; checkpoints."""

import dataclasses
import itertools

import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from utils.activation_cache import ActivationCache
from utils.atomic import lock_file
from utils.caching import cache_activations
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.labelled_text import LabelledText
from utils.train_config import SAE_Train_config
from utils.training import train
from utils.training_core import TrainingCore


@pytest.fixture
def cache(two_concepts, tiny_llama, tmp_path):
    return ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path / "data"))


@pytest.fixture
def config(cache):
    return SAE_Train_config(
        batch_size=32,
        ds_path=str(cache.folder),
        factor=2,
        k=8,
        lr=1e-3,
        max_epochs=3,
        n_inputs=32,
        activation="topk-sigmoid",
    )


@pytest.mark.parametrize("scaling", [0.0, 1.0, 5.0])
def test_five_updates_equal_the_recipe_written_out(cache, config, scaling):
    trainer = TrainingCore(config, cache, scaling, seed=0, device=torch.device("cpu"))
    trainer.sae.double()
    weights = {name: p.detach().clone().requires_grad_() for name, p in trainer.sae.named_parameters()}
    plain = torch.optim.Adam(weights.values(), lr=1e-3)
    trainer.optimizer = torch.optim.Adam(trainer.sae.parameters(), lr=1e-3, fused=True)
    split = cache.split("train")
    for batch in itertools.islice(trainer.reader.epoch(0), 5):
        trainer.step(batch)
        x_BD = torch.from_numpy(split.acts(batch.rows_B)).double()
        mean, std = x_BD.mean(1, keepdim=True), x_BD.std(1, keepdim=True)
        pre_BN = ((x_BD - mean) / (std + 1e-5) - weights["pre_bias"]) @ weights["encoder.weight"].T + weights[
            "latent_bias"
        ]
        kept = torch.zeros_like(pre_BN).scatter(1, pre_BN.topk(8).indices, 1.0)
        xhat_BD = ((torch.sigmoid(pre_BN) * kept) @ weights["decoder.weight"].T + weights["pre_bias"]) * std + mean
        loss_B = ((xhat_BD - x_BD) ** 2).mean(1) / (x_BD**2).mean(1)
        if scaling:
            y_BC = torch.from_numpy(split.label_BC[batch.rows_B]).double()
            p_BC = torch.sigmoid(pre_BN[:, :2])
            loss_B = loss_B - (scaling * y_BC * p_BC.log() + (1 - y_BC) * (1 - p_BC).log()).sum(1)
        plain.zero_grad()
        loss_B.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        plain.step()
    for name, parameter in trainer.sae.named_parameters():
        torch.testing.assert_close(parameter.detach(), weights[name].detach(), rtol=0, atol=1e-10)


def test_guidance_makes_latents_predict_their_concepts(cache, config, tmp_path):
    config = dataclasses.replace(config, max_epochs=60, lr=1e-2)
    guided = train(config, cache, tmp_path / "g_s1", cond_loss_scaling=1)
    vanilla = train(config, cache, tmp_path / "v_s0", cond_loss_scaling=0)
    assert guided["test_concept_loss"] < 0.7 < vanilla["test_concept_loss"]
    assert vanilla["concept_loss"] == 0
    assert guided["l0"] == 8


def test_more_epochs_continue_a_finished_run(cache, config, tmp_path):
    train(dataclasses.replace(config, max_epochs=2), cache, tmp_path / "more")
    train(config, cache, tmp_path / "more")
    train(config, cache, tmp_path / "at_once")
    assert (tmp_path / "more/sae.safetensors").read_bytes() == (tmp_path / "at_once/sae.safetensors").read_bytes()
    assert load_checkpoint(tmp_path / "more").config["epochs_trained"] == 3


def test_other_settings_in_the_folder_are_refused(cache, config, tmp_path):
    train(config, cache, tmp_path / "x_s1")
    with pytest.raises(UserError, match=r"seed: 0 -> 1"):
        train(config, cache, tmp_path / "x_s1", seed=1)
    with pytest.raises(UserError, match=r"lr: 0.001 -> 0.1"):
        train(dataclasses.replace(config, lr=0.1), cache, tmp_path / "x_s1")


def test_a_checkpoint_holds_what_the_contract_says(cache, config, tmp_path):
    train(config, cache, tmp_path / "c_s1")
    checkpoint = load_checkpoint(tmp_path / "c_s1")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "c_s1/sae.safetensors").items()}
    assert shapes == {"pre_bias": (32,), "encoder.weight": (64, 32), "latent_bias": (64,), "decoder.weight": (32, 64)}
    wanted = {"model": "tinyllama", "block": 1, "site": "block", "concepts": ["WHO", "NUMBER"], "seed": 0}
    assert {key: checkpoint.config[key] for key in wanted} == wanted
    assert checkpoint.config["manifest_sha256"] == cache.checksum
    names = {path.name for path in (tmp_path / "c_s1").iterdir()}
    tables = {"steps.csv", "history.csv", "concepts.csv"}
    assert names == {"sae.safetensors", "config.json", "resume.safetensors", "tensorboard", "curves.png"} | tables


@pytest.mark.parametrize("torn", ["", "step,ep", "step,epoch\n1", "whole\n20,3,0.0"])
def test_a_torn_table_of_steps_does_not_stop_a_run(cache, config, tmp_path, torn):
    train(dataclasses.replace(config, max_epochs=2), cache, tmp_path / "x")
    path = tmp_path / "x/steps.csv"
    path.write_text(path.read_text() + torn[6:] if torn.startswith("whole") else torn)
    train(config, cache, tmp_path / "x")
    steps = pd.read_csv(path)["step"].tolist()
    assert steps == sorted(set(steps))
    assert steps[-1] == 3 * (len(cache.split("train")) // 32)


def test_two_runs_do_not_share_a_folder(cache, config, tmp_path):
    with FileLock(lock_file(tmp_path / "x")), pytest.raises(UserError, match="another process is training into it"):
        train(config, cache, tmp_path / "x")


def test_vanilla_losses_have_no_concept_loss_in_them(cache, config, tmp_path):
    metrics = train(config, cache, tmp_path / "v", cond_loss_scaling=0)
    assert metrics["loss"] == metrics["reconstruction_loss"]
    assert metrics["test_loss"] == metrics["test_reconstruction_loss"]
    assert metrics["test_concept_loss"] > 0


def test_damaged_checkpoints_are_named(cache, config, tmp_path):
    folder = tmp_path / "d_s1"
    train(config, cache, folder)
    weights = load_file(folder / "sae.safetensors")
    save_file({"encoder.weight": weights["encoder.weight"], "W_dec": weights["pre_bias"]}, folder / "sae.safetensors")
    with pytest.raises(UserError, match=r"missing decoder.weight.*missing pre_bias.*unexpected W_dec"):
        load_checkpoint(folder)
    weights["pre_bias"][3] = float("nan")
    save_file(weights, folder / "sae.safetensors")
    with pytest.raises(UserError, match="pre_bias holds NaN"):
        load_checkpoint(folder)
    (folder / "sae.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(folder)


def test_guidance_needs_labels_and_enough_latents(tiny_llama, tmp_path, config, two_concepts):
    plain = LabelledText("plain", [], {"train": two_concepts.splits["train"]})
    plain.splits["train"] = [dataclasses.replace(text, spans=()) for text in plain.splits["train"]]
    cache = ActivationCache(cache_activations(plain, tiny_llama, 1, "block", tmp_path / "plain"))
    with pytest.raises(UserError, match="no labels to guide by"):
        train(config, cache, tmp_path / "p_s1")
    assert train(config, cache, tmp_path / "p_s0", cond_loss_scaling=0)["l0"] == 8
    many = LabelledText("many", ["WHO", "NUMBER", *(f"C{c}" for c in range(63))], two_concepts.splits)
    cache = ActivationCache(cache_activations(many, tiny_llama, 1, "block", tmp_path / "many"))
    with pytest.raises(UserError, match="65 concepts need as many latents, but there are 64"):
        train(config, cache, tmp_path / "m_s1")
    assert not (tmp_path / "m_s1").exists()


def test_a_loss_that_is_no_number_stops_the_run(cache, config, tmp_path):
    with pytest.raises(UserError, match=r"gradient of step \d+ is not a finite number .* nothing was saved before"):
        train(dataclasses.replace(config, lr=1e30, max_epochs=5), cache, tmp_path / "n_s1")
    assert not (tmp_path / "n_s1/config.json").exists()
