"""Runs with guidance beyond the paper's, and where their SAEs are used."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.guided import ALL, normalised
from utils.checkpoint import load_checkpoint
from utils.concept_features import concept_features
from utils.detection import classes_of_latents
from utils.erasure import fold
from utils.errors import UserError
from utils.guided_start import shuffled_labels
from utils.sae import SAEConfig
from utils.sae_export import SAEBenchView, to_saelens
from utils.sae_loading import get_model, load_sae
from utils.training import train
from utils.training_core import TrainingCore


@pytest.fixture
def cache(labelled_cache):
    return labelled_cache


@pytest.fixture
def config(labelled_config):
    return labelled_config


# --- the whole run


@pytest.mark.parametrize("changes", [ALL, ALL | {"erased_skip": True, "text_loss": False}, {"erase": "leace"}])
def test_a_run_is_saved_whole_and_goes_on_where_it_was(cache, config, tmp_path, changes):
    config = dataclasses.replace(config, **changes)
    train(config, cache, tmp_path / "whole")
    loaded = load_checkpoint(tmp_path / "whole")
    core = TrainingCore(config, cache, 1.0, seed=0)
    while core.steps < core.total_steps:
        for batch in core.batches():
            core.step(batch)
            if core.steps == 5:  # into another process
                state, core = core.state(), TrainingCore(config, cache, 1.0, seed=0)
                core.restore(state)
                break
    acts_BD = torch.from_numpy(cache.split("test").acts(np.arange(50)))
    torch.testing.assert_close(loaded.sae(acts_BD), fold(core.sae)(acts_BD), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded.sae(acts_BD), core.sae(acts_BD), rtol=1e-3, atol=1e-3)
    assert loaded.sae.config == core.sae.config
    train(config, cache, tmp_path / "whole")  # done already


def test_a_run_by_an_earlier_method_is_not_gone_on_with(cache, config, tmp_path, monkeypatch):
    with monkeypatch.context() as then:
        then.setattr("utils.run_settings.GUIDANCE", 1)
        train(dataclasses.replace(config, **ALL), cache, tmp_path / "clear")
        train(config, cache, tmp_path / "paper")
    train(config, cache, tmp_path / "paper")  # that method is what it was
    with pytest.raises(UserError, match=r"holds a checkpoint of other settings \(guidance: 1 -> 2\); remove it"):
        train(dataclasses.replace(config, **ALL), cache, tmp_path / "clear")


def test_a_vanilla_sae_knows_nothing_of_the_options(cache, config):
    plain, other = (
        TrainingCore(own, cache, 0.0, seed=0) for own in (config, dataclasses.replace(config, **ALL, erased_skip=True))
    )
    for core in (plain, other):
        for batch in itertools.islice(core.batches(), 5):
            core.step(batch)
    assert plain.sae.config == other.sae.config
    assert all(torch.equal(a, b) for a, b in zip(plain.sae.parameters(), other.sae.parameters(), strict=True))


def test_shuffled_labels_keep_their_numbers(cache, tiny_llama, sp_folder, tmp_path):
    split = cache.split("train")
    shuffled_BC = shuffled_labels(split, 0)
    assert (shuffled_BC.sum(0) == split.label_BC.sum(0)).all()
    assert (shuffled_BC != split.label_BC).any()
    other = split.with_labels(shuffled_BC)
    rows_B = np.array([3, 40, 41, 90])
    np.testing.assert_array_equal(other.take("label", rows_B), shuffled_BC[rows_B])
    np.testing.assert_array_equal(other.label_BC, shuffled_BC)
    np.testing.assert_array_equal(split.take("label", rows_B), split.label_BC[rows_B])


def test_shuffled_labels_of_texts_stay_those_of_whole_texts(cache):
    split = cache.split("train")
    by_text_BC = (split.text_id_B % 2).astype(np.int8)[:, None].repeat(2, 1)
    shuffled_BC = shuffled_labels(split.with_labels(by_text_BC), 0)
    for text_id in np.unique(split.text_id_B):
        assert len(np.unique(shuffled_BC[split.text_id_B == text_id], axis=0)) == 1
    assert (shuffled_BC != by_text_BC).any()


def test_the_control_of_shuffled_labels_learns_no_concept(cache, config):
    core = TrainingCore(dataclasses.replace(config, control="shuffled_labels", **ALL), cache, 1.0, seed=0)
    split = cache.split("train")
    pre_BC = core.sae.pre_activations(normalised(split).float())[:, :2]
    right = ((pre_BC > 0) == torch.from_numpy(split.label_BC > 0)).float().mean()
    honest = TrainingCore(dataclasses.replace(config, **ALL | {"text_loss": False}), cache, 1.0, seed=0)
    pre_BC = honest.sae.pre_activations(normalised(split).float())[:, :2]
    assert ((pre_BC > 0) == torch.from_numpy(split.label_BC > 0)).float().mean() > right


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"erase": "all"}, "erase: 'all' is unknown"),
        ({"erased_skip": True}, "erased_skip: hands on what is erased; it needs erase leace"),
        ({"erase_parts": 2}, "erase_parts: are those of what is erased; they need erase leace"),
        ({"erase": "leace", "erase_parts": 0}, "erase_parts: must be a whole number of at least 1"),
        ({"concept_gate": "threshold", "activation": "relu"}, "concept_gate: threshold needs a TopK activation"),
        ({"concept_init": 1}, "concept_init: 1 is unknown"),
        ({"text_loss": 1}, "text_loss: 1 is unknown"),
        ({"decorrelate": -1}, "decorrelate: must be a number of at least 0"),
        ({"concept_lr": 2}, "concept_lr: must be a number from 0 to 1, not 2"),
        ({"gate_at": -3}, "gate_at: is that of concept_gate threshold"),
        ({"gate_margin": 4}, "gate_margin: is that of concept_gate threshold"),
        ({"gate_margin": -1}, "gate_margin: must be a number of at least 0"),
        ({"gate_at": "low"}, "gate_at: must be a number from -100 to 100"),
        ({"gate_at": math.nan}, "gate_at: must be a number from -100 to 100, not nan"),
        ({"gate_margin": True}, "gate_margin: must be a number of at least 0, not True"),
        ({"control": "random_erasure"}, "control: random_erasure needs erase leace"),
    ],
)
def test_impossible_options_are_refused(config, changes, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, **changes)


def test_a_gate_leaves_fewer_latents_for_the_topk():
    with pytest.raises(UserError, match="k: 30 is more than the 28 latents there are beside 4 gated ones"):
        SAEConfig(8, 32, 30, n_gated=4)
    with pytest.raises(UserError, match="n_gated: needs the activation"):
        SAEConfig(8, 32, 4, "relu", n_gated=4)


@pytest.mark.parametrize("key", ["gate_at", "gate_margin"])
@pytest.mark.parametrize("value", [True, "3", None, math.nan, math.inf])
def test_gates_at_no_number_are_refused(key: str, value: Any) -> None:
    wrong: dict[str, Any] = {key: value}
    useless: dict[str, Any] = {key: 1.0}
    with pytest.raises(UserError, match=f"{key}: must be a number"):
        SAEConfig(8, 32, 4, n_gated=4, **wrong)
    with pytest.raises(UserError, match=f"{key}: is that of gated latents"):
        SAEConfig(8, 32, 4, **useless)


# --- where such SAEs are used


@pytest.fixture
def trained(cache, config, tmp_path):
    train(
        dataclasses.replace(config, **ALL | {"gate_at": -3.0, "gate_margin": 4.0, "erased_skip": True}),
        cache,
        tmp_path / "ckpt/own",
    )
    return tmp_path / "ckpt/own"


def test_a_wrapped_model_reconstructs_with_the_skip_and_is_steered(trained, tiny_llama):
    model, tokenizer = get_model("tinyllama", str(trained), model_path=str(tiny_llama.folder))
    inputs, sae = tokenizer(["Thou art a villain"], return_tensors="pt"), load_sae(str(trained)).sae
    with torch.inference_mode():
        with model.capture() as seen:
            plain = model(**inputs).logits
        with model.reconstruct(error_term=False), model.capture() as _:
            changed = model(**inputs).logits
        with model.steer({0: 0.5}, beta="active"):
            steered = model(**inputs).logits
    torch.testing.assert_close(seen.latents[0], sae.encode(seen.acts[0]))
    assert not torch.equal(plain, changed)
    assert not torch.equal(plain, steered)
    assert model.sae.config.skip_rank == sae.skip_write.shape[1] > 0
    reconstruction = sae(seen.acts[0]).reconstruction_BD
    assert not torch.allclose(reconstruction, sae.decode(seen.latents[0], *sae.normalise(seen.acts[0])[1:]))


def test_others_formats_cannot_hold_a_gate_or_a_skip(trained, cache, config, tmp_path):
    with pytest.raises(UserError, match="SAELens has no SAEs with gated latents or a skip"):
        to_saelens(load_sae(str(trained)), tmp_path / "lens")
    with pytest.raises(UserError, match="SAEBench decodes latents alone"):
        SAEBenchView(load_sae(str(trained)))
    train(dataclasses.replace(config, erase="leace"), cache, tmp_path / "ckpt/plain")
    assert to_saelens(load_sae(str(tmp_path / "ckpt/plain")), tmp_path / "lens").is_dir()


def test_a_gate_is_what_detects(cache, trained):
    sae, split = load_sae(str(trained)).sae, cache.split("test")
    features = concept_features(sae, split, np.arange(2))
    found_B = classes_of_latents(features.values_BC)
    assert ((found_B < 2) == (features.pre_BC > -3).any(axis=1)).all()
    on = np.flatnonzero(found_B < 2)
    assert (features.values_BC[on, found_B[on]] == features.values_BC[on].max(axis=1)).all()


@pytest.mark.parametrize("absent", [[1], [0, 1]])
def test_a_label_that_never_occurs_does_no_harm(cache, config, monkeypatch, absent):
    split = cache.split("train")
    labels_BC = split.label_BC.copy()
    labels_BC[:, absent] = 0
    monkeypatch.setitem(cache._splits, "train", split.with_labels(labels_BC))
    options = ALL | {"erased_skip": True, "unit_norm_decoder": True}
    core = TrainingCore(dataclasses.replace(config, **options), cache, 1.0, seed=0)
    for batch in core.batches():
        core.step(batch)
    folded = fold(core.sae)
    assert all(tensor.isfinite().all() for tensor in folded.state_dict().values())
    assert folded.decoder.weight.norm(dim=0).min() > 0.5  # it can still be steered by
