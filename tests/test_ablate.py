"""Recipes side by side on a tiny model; budgets, leakage and tables against their definitions."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from eval import ablate
from llama3_SAE import LLama3_SAE
from tests.scripts import assert_one_line, outcome, write_config
from utils.ablation import summary
from utils.activation_cache import ActivationCache
from utils.errors import UserError
from utils.labelled_text import whole
from utils.leakage import leakage
from utils.models import load_tokenizer
from utils.recipes import CLEAR, RECIPES, recipe_config, training_flops
from utils.rivals.states import last_states
from utils.sae import SAE, SAEConfig
from utils.steered_probe import steered_probe
from utils.train_config import SAE_Train_config

SIZES = {"n_rows": 4000, "n_tokens": 50_000, "n_concepts": 1}


@pytest.fixture
def paper():
    return SAE_Train_config(
        batch_size=250, ds_path="x", factor=3, k=144, lr=1e-3, max_epochs=10, n_inputs=576, activation="topk-sigmoid"
    )


# What `clear` has for labels of tokens only, or of whole texts only, is no recipe without it for the others.
NOT_OF_TEXTS, NOT_OF_TOKENS = {"clear-no-margin"}, {"clear-no-text", "clear-no-parts"}


def test_recipes_cost_no_more_than_the_papers(paper):
    for n_concepts, others in ((1, NOT_OF_TEXTS), (25, NOT_OF_TOKENS)):
        for name in RECIPES.keys() - others:
            sizes = SIZES | {"n_concepts": n_concepts}
            config = recipe_config(name, paper, whole_texts=n_concepts == 1, **sizes)
            share = training_flops(config, **sizes) / training_flops(paper, **sizes)
            assert share <= (1 / 3 if name.endswith("-third") else 1)
            longer = dataclasses.replace(config, max_epochs=config.max_epochs + 1)
            assert training_flops(longer, **sizes) > share * training_flops(paper, **sizes)


def test_a_recipe_without_what_is_not_there_is_refused(paper):
    for whole_texts, others in ((True, NOT_OF_TEXTS), (False, NOT_OF_TOKENS)):
        for name in others:
            with pytest.raises(UserError, match=f"{name}: for labels of .+ this is clear itself"):
                recipe_config(name, paper, whole_texts=whole_texts, **SIZES)


def test_the_operations_of_a_vanilla_run(paper):
    per_token = 2 * 576 * 1728 + 4 * 2 * 576 * 144
    assert training_flops(paper, **SIZES | {"n_concepts": 0}) == 10 * 50_000 * per_token


def test_each_recipe_is_the_paper_s_but_for_its_name(paper):
    of_tokens, of_texts = (recipe_config("clear", paper, whole_texts=whole, **SIZES) for whole in (False, True))
    assert {key: getattr(of_tokens, key) for key in CLEAR} == dict(CLEAR)
    assert not of_tokens.text_loss
    assert of_texts.text_loss
    assert of_texts.gate_margin == 0  # concepts of texts may go together
    assert recipe_config("paper", paper, whole_texts=True, **SIZES) == paper
    for part, default in (("erase", "none"), ("warm", "random"), ("gate", "topk")):
        config = recipe_config(f"clear-no-{part}", paper, whole_texts=True, **SIZES)
        key = {"erase": "erase", "warm": "concept_init", "gate": "concept_gate"}[part]
        assert getattr(config, key) == default


def test_leakage_is_what_a_probe_finds_beside_the_concepts_latents(cached):
    cache, sae = ActivationCache("datasets_v2/tiny-SP-B01-block"), SAE(SAEConfig(32, 64, 60, "topk"))
    with torch.no_grad():
        whole = leakage(sae, cache, "valid", first=0, whole_texts=True)
        assert whole > 0.6
        sae.encoder.weight[1:] = 0
        sae.latent_bias[1:] = torch.arange(63.0)
    assert leakage(sae, cache, "valid", first=1, whole_texts=True) == pytest.approx(0.5, abs=0.01)


def test_means_and_intervals_over_seeds():
    table = pd.DataFrame({"dataset": "SP", "recipe": "clear", "seed": range(3), "fms@1 paper": [0.5, 0.6, 0.7]})
    assert summary(table) == (
        "| SP | seeds | fms@1 paper |\n| --- | --- | --- |\n| clear | 3 | 0.600 ± 0.248 |\n"  # 4.303 * 0.1 / sqrt(3)
    )


def test_recipes_are_trained_measured_and_shown(cached, tiny_llama, capsys):
    argv = ["SP", "--config", write_config(cached, max_epochs=6), "--seeds", 2, "--quality-texts", 2]
    argv += ["--recipe", "vanilla", "paper", "clear", "control-labels", "--model-path", tiny_llama.folder]
    code, printed = outcome(capsys, ablate.main, *argv)
    assert code == 0, printed.err
    out = cached / "results/ablation"
    table = pd.read_csv(out / "ablation.csv")
    assert table.groupby("recipe", sort=False).size().to_dict() == dict.fromkeys(
        ["vanilla", "paper", "clear", "control-labels"], 2
    )
    for name in ("fms@1 paper", "fms@5 heldout", "nmse", "ce_recovered", "leakage", "training FLOPs"):
        assert np.isfinite(table[name]).all(), name
    assert (table["training FLOPs"] <= table[table["recipe"] == "paper"]["training FLOPs"].max()).all()
    guided = table["recipe"] != "vanilla"
    assert np.isfinite(table["probe_steered"][guided]).all()
    assert table["probe_steered"][~guided].isna().all()
    config = json.loads((out / "ckpt/seed1/tiny-clear_s1/config.json").read_text())
    assert config["sae"]["n_gated"] == 1
    assert config["training"]["erase"] == "leace"
    assert "| SP | seeds | fms@1 paper |" in (out / "ablation.md").read_text()
    assert (out / "pareto.png").stat().st_size > 1000
    before = (out / "ablation.csv").read_bytes()
    assert outcome(capsys, ablate.main, *argv)[0] == 0
    assert (out / "ablation.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["XY"], "XY: no such data set here"),
        (["SP", "--recipe", "magic"], "invalid choice: 'magic'"),
        (["SP", "PII_synth", "--config", "x.json"], "--config is for one data set"),
        (["SP", "--source", "RTP_split=x"], "--source RTP_split=x: must be DATASET=PATH, with one of SP"),
        (["SP", "--config", "nowhere.json"], "nowhere.json: no such file"),
    ],
)
def test_bad_options_are_one_line(work, capsys, argv, message):
    code, printed = outcome(capsys, ablate.main, *argv)
    assert_one_line(code, printed, message)


def test_steering_towards_a_probes_direction_moves_it(tiny_llama):
    texts = [whole(f"Thou art {word} .", "S") for word in ["a", "villain", "sweet", "false"]]
    texts += [whole(f"you are {word} .", None) for word in ["a", "bad", "my", "long"]]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama.folder), load_tokenizer(tiny_llama)
    states_MLD = last_states(model, tokenizer, [text.text for text in texts])
    sae = SAE(SAEConfig(32, 64, 8))
    with torch.no_grad():  # latent 0 writes what tells the classes apart
        sae.decoder.weight[:, 0] = states_MLD[:4, 1].mean(0) - states_MLD[4:, 1].mean(0)
    wrapped = LLama3_SAE.attach(tiny_llama.folder, sae, 1)
    found = steered_probe(wrapped, tokenizer, 0, texts, texts, strength=0.5)
    assert found["probe_auroc"] == 1.0
    assert found["probe_steered"] > 0.05
    with torch.no_grad():
        wrapped.sae.decoder.weight[:, 0] *= -1
    assert steered_probe(wrapped, tokenizer, 0, texts, texts, strength=0.5)["probe_steered"] < -0.05


def test_a_recipe_that_is_another_is_refused_before_training(tmp_path, capsys):
    out = tmp_path / "out"
    code, printed = outcome(capsys, ablate.main, "SP", "--recipe", "paper", "clear-no-margin", "--out", out)
    assert_one_line(code, printed, "clear-no-margin: for labels of whole texts this is clear itself")
    assert not out.exists()
