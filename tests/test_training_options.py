"""What training offers beyond the paper's recipe: each option does what it says, and all are off by default."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from utils.activation_cache import ActivationCache
from utils.caching import cache_activations
from utils.checkpoint import load_checkpoint, load_resume
from utils.errors import UserError
from utils.objective import aux_k_loss
from utils.sae import SAE, SAEConfig
from utils.schedule import LR_DECAYS, learning_rate
from utils.train_config import SAE_Train_config
from utils.training import train
from utils.training_core import TrainingCore


@pytest.fixture
def cache(two_concepts, tiny_llama, tmp_path):
    return ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path / "data"))


@pytest.fixture
def config(cache):
    return SAE_Train_config(
        batch_size=32, ds_path=str(cache.folder), factor=4, k=8, lr=1e-3, max_epochs=3, n_inputs=32,
        activation="topk-sigmoid",
    )  # fmt: skip


def after_steps(config, cache, n=10, scaling=1.0):
    core = TrainingCore(config, cache, scaling, seed=0)
    for batch in itertools.islice(core.batches(), n):
        core.step(batch)
    return core


@given(st.integers(1, 500), st.integers(0, 100), st.sampled_from(LR_DECAYS))
def test_learning_rates_rise_and_fall(n_steps, warmup_steps, decay):
    rates = [learning_rate(s, n_steps, peak=2.0, warmup_steps=warmup_steps, decay=decay) for s in range(n_steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    warmup, rest = rates[:warmup_steps], rates[warmup_steps:]
    assert warmup == sorted(warmup)
    assert rest == sorted(rest, reverse=True)
    assert rest[:1] in ([], [2.0])
    if decay == "none":
        assert set(rest) <= {2.0}
    elif len(rest) > 10:
        assert rest[-1] < 0.2
        assert rest[1] > 1.7
        assert rest[len(rest) // 2] == pytest.approx(1.0, abs=0.2)


def test_the_rate_of_every_step_is_the_schedules(cache, config, tmp_path):
    config = dataclasses.replace(config, warmup_steps=5, lr_decay="cosine")
    train(config, cache, tmp_path / "x")
    steps = pd.read_csv(tmp_path / "x/steps.csv")
    n_steps = steps["step"].iloc[-1]
    expected = [learning_rate(s - 1, n_steps, peak=1e-3, warmup_steps=5, decay="cosine") for s in steps["step"]]
    assert steps["learning_rate"].tolist() == pytest.approx(expected)
    with pytest.raises(UserError, match="max_epochs: 3 -> 4"):  # would have had other rates from the first step on
        train(dataclasses.replace(config, max_epochs=4), cache, tmp_path / "x")


def test_unit_norm_decoder(cache, config):
    core = after_steps(dataclasses.replace(config, unit_norm_decoder=True, lr=0.1), cache)
    torch.testing.assert_close(core.sae.decoder.weight.norm(dim=0), torch.ones(128))
    free = after_steps(dataclasses.replace(config, lr=0.1), cache).sae.decoder.weight.norm(dim=0)
    assert free.max() > 1.1


def test_unit_norm_leaves_of_the_gradient_what_turns_the_columns(cache, config):
    core, radial = TrainingCore(dataclasses.replace(config, unit_norm_decoder=True), cache, 1.0, seed=0), []

    def look(core):
        weight_DN = core.sae.decoder.weight
        radial.append((weight_DN * weight_DN.grad).sum(dim=0).abs().max().item())

    core.step(next(core.batches()), update=look)
    assert radial[0] < 1e-6


@pytest.mark.parametrize("activation", ["topk", "topk-sigmoid"])
def test_aux_k_reaches_the_dead_latents_alone(activation):
    sae = SAE(SAEConfig(12, 40, 5, activation)).double()
    dead = torch.tensor([3, 17, 30])
    acts_BD = torch.randn(9, 12, dtype=torch.float64)
    with torch.no_grad():
        reconstruction_BD = sae(acts_BD).reconstruction_BD
    named = {name: parameter.detach().requires_grad_() for name, parameter in sae.named_parameters()}

    def loss(*parameters):
        with torch.nn.utils.stateless._reparametrize_module(sae, dict(zip(named, parameters, strict=True))):
            return aux_k_loss(sae, acts_BD, reconstruction_BD, dead, k=2)

    grads = torch.autograd.grad(loss(*named.values()), list(named.values()), materialize_grads=True)
    reached = {
        name: set(grad.nonzero()[:, -1 if name == "decoder.weight" else 0].tolist())
        for name, grad in zip(named, grads, strict=True)
    }
    alone = {3, 17, 30}
    assert reached == {"pre_bias": set(), "encoder.weight": alone, "latent_bias": alone, "decoder.weight": alone}
    named["pre_bias"].requires_grad_(False)  # as the residual, it is taken as given
    assert torch.autograd.gradcheck(loss, tuple(named.values()))


def test_aux_k_teaches_dead_latents_the_residual_but_leaves_the_concepts_alone(cache, config):
    config = dataclasses.replace(config, k=2, factor=16, lr=1e-2, dead_after_tokens=64, aux_k_coefficient=1.0)
    acts_BD = torch.from_numpy(cache.split("train").acts(np.arange(200)))

    def unexplained(aux_k):
        core = TrainingCore(dataclasses.replace(config, aux_k=aux_k or 1, max_epochs=9), cache, 1.0, seed=0)
        for _ in range(8):
            for batch in core.batches():
                if not aux_k:
                    core._dead = core._dead[:0]
                core.step(batch)
                core.close_window()
                core.window.reset()
                assert not set(core._dead.tolist()) & {0, 1}
        assert len(core._dead) > 100
        reconstruction_BD = core.sae(acts_BD).reconstruction_BD
        return aux_k_loss(core.sae, acts_BD, reconstruction_BD, core._dead, 32).item()

    assert unexplained(32) < 0.7
    assert unexplained(0) > 1  # what they were by chance only adds errors


def test_bfloat16_products_with_float32_weights(cache, config):
    cores = {p: after_steps(dataclasses.replace(config, precision=p), cache) for p in ("float32", "bfloat16")}
    assert all(p.dtype == torch.float32 for p in cores["bfloat16"].sae.parameters())
    losses = {name: core.window.values()["loss"] for name, core in cores.items()}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["bfloat16"] != losses["float32"]
    relu = after_steps(dataclasses.replace(config, precision="bfloat16", activation="relu"), cache)
    assert relu.window.values()["loss"] < 3


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_are_the_whole_batchs(cache, config, parts):
    whole = after_steps(config, cache)
    core = after_steps(dataclasses.replace(config, accumulation_steps=parts), cache)
    for name, tensor in core.sae.state_dict().items():
        torch.testing.assert_close(tensor, whole.sae.state_dict()[name], rtol=0, atol=1e-4)
    assert core.window.values() == pytest.approx(whole.window.values(), rel=1e-4)


def test_compiled_training_is_the_same(cache, config):
    cores = [after_steps(dataclasses.replace(config, compile=backend), cache) for backend in ("", "aot_eager")]
    assert cores[1].window.values() == pytest.approx(cores[0].window.values(), rel=1e-4)


def test_early_stopping_keeps_the_best_epoch(cache, config, tmp_path):
    config = dataclasses.replace(config, lr=0.5, max_epochs=40, early_stopping=2)
    metrics = train(config, cache, tmp_path / "early")
    history = pd.read_csv(tmp_path / "early/history.csv")
    best = history["test_loss"].argmin()
    assert len(history) == best + 3 < 40
    assert metrics["epoch"] == best + 1
    checkpoint = load_checkpoint(tmp_path / "early")
    assert checkpoint.config["stopped_early"]
    core = TrainingCore(config, cache, 1.0, seed=0)
    core.sae.load_state_dict(load_file(tmp_path / "early/sae.safetensors"))
    assert core.evaluate(cache.split("test")).values()["loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
    before = (tmp_path / "early/sae.safetensors").stat().st_mtime_ns
    assert train(config, cache, tmp_path / "early") == checkpoint.config["metrics"]
    assert (tmp_path / "early/sae.safetensors").stat().st_mtime_ns == before


def test_early_stopping_that_did_not_stop_goes_on_from_the_last_epoch_not_the_best(cache, config, tmp_path):
    config = dataclasses.replace(config, lr=0.5, early_stopping=30)
    train(dataclasses.replace(config, max_epochs=5), cache, tmp_path / "more")
    for folder in ("more", "at_once"):
        train(dataclasses.replace(config, max_epochs=8), cache, tmp_path / folder)
    states = [load_resume(tmp_path / folder) for folder in ("more", "at_once")]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0].tensors.keys() == states[1].tensors.keys()
    for name, tensor in states[0].tensors.items():
        torch.testing.assert_close(tensor, states[1].tensors[name], rtol=0, atol=0, equal_nan=True)
    assert (tmp_path / "more/sae.safetensors").read_bytes() == (tmp_path / "at_once/sae.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_decay": "quick"}, 'lr_decay: \'quick\' is unknown; choose one of "none", "linear", "cosine"'),
        ({"precision": "float16"}, "precision: 'float16' is unknown"),
        ({"unit_norm_decoder": 1}, "unit_norm_decoder: 1 is unknown; choose one of false, true"),
        ({"compile": "gcc"}, "compile: 'gcc' is unknown"),
        ({"warmup_steps": -1}, "warmup_steps: must be a whole number of at least 0, not -1"),
        ({"aux_k": 4, "activation": "relu"}, "aux_k: needs a TopK activation, not relu"),
        ({"aux_k_coefficient": 0}, "aux_k_coefficient: must be a positive number"),
        ({"accumulation_steps": 3}, "accumulation_steps: 3 does not divide the batch_size 32"),
    ],
)
def test_impossible_options_are_refused(config, changes, message):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(config, **changes)
    assert message in str(caught.value)
