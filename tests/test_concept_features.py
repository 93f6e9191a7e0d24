"""Values of the concepts' latents, and how they are summed up, against slow re-statements."""

import numpy as np
import pandas as pd
import pytest
import torch

from tests.plain import plain_auroc, plain_spearman
from utils.activation_cache import ActivationCache
from utils.caching import cache_activations
from utils.concept_features import calibration, concept_features, summarise, text_table, token_table
from utils.concept_latents import concept_latents
from utils.evaluated import Evaluated
from utils.fms import fms
from utils.fms_samples import balanced_rows, encode_rows, pool_cached
from utils.labelled_text import Text
from utils.sae import SAE, SAEConfig
from utils.sae_loading import LoadedSAE


@pytest.fixture
def cache(two_concepts, tiny_llama, tmp_path):
    return ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path))


@pytest.fixture
def subject(cache):
    sae = SAE(SAEConfig(n_inputs=32, n_latents=48, k=6)).requires_grad_(False)
    return Evaluated("some", LoadedSAE(sae, "guided"), "tiny", 1, "block", cache)


def test_values_are_those_of_one_token_after_the_other(cache, subject, two_concepts):
    split, sae, latents_C = cache.split("test"), subject.loaded.sae, np.array([40, -1])
    features = concept_features(sae, split, latents_C)
    tokens = token_table(split, cache.concepts, features)
    assert len(tokens) == len(split)
    for row in range(len(split)):
        acts_1D = torch.from_numpy(split.acts(np.array([row])))
        z_1D, _, _ = sae.normalise(acts_1D)
        assert tokens["value WHO"][row] == pytest.approx(sae.encode(acts_1D)[0, 40].item(), abs=1e-6)
        assert tokens["pre WHO"][row] == pytest.approx(sae.pre_activations(z_1D)[0, 40].item(), abs=1e-5)
    assert (tokens["value NUMBER"] == 0).all()
    assert tokens["pre NUMBER"].isna().all()
    texts = text_table(tokens, cache.concepts, two_concepts.splits["test"])
    assert "score" not in texts
    for _, text in texts[texts["concept"] == "WHO"].iterrows():
        own = tokens[tokens["text_id"] == text["text_id"]]
        assert text["value"] == pytest.approx(own["value WHO"].mean(), abs=1e-6)
        assert text["largest"] == own["value WHO"].max()
        assert text["active"] == pytest.approx((own["value WHO"] != 0).mean())
        assert text["label"] == own["label WHO"].max() == 1


def test_roots_are_those_of_fms(cache, subject):
    split, sae = cache.split("train"), subject.loaded.sae
    rows_B = balanced_rows(split.label_BC[:, 1], np.random.default_rng([0, 1]))
    expected = fms(encode_rows(sae, split, rows_B), split.label_BC[rows_B, 1]).roots[0]
    assert concept_latents(subject, "train", tokens=True)[1] == expected
    # All texts have both concepts, so that over texts nothing tells them apart.
    assert pool_cached(sae, split).labels_BC.all()
    assert concept_latents(subject, "train", tokens=False).tolist() == [-1, -1]


def test_a_guided_sae_has_its_own_latents(cache, subject):
    loaded = LoadedSAE(subject.loaded.sae, "guided", {"training": {"cond_loss_scaling": 1.0}})
    guided = Evaluated("guided", loaded, "tiny", 1, "block", cache)
    assert concept_latents(guided, "train", tokens=True).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_summary_equals_the_plain_statistics(seed):
    random = np.random.default_rng(seed)
    labels_B = random.random(80) < 0.3
    table = pd.DataFrame(
        {
            "label": labels_B.astype(int),
            "value": random.integers(0, 6, 80) / 5 + 0.3 * labels_B,  # with ties
            "pre": random.normal(size=80),
            "active": random.random(80) < 0.5,
            "score": random.integers(0, 10, 80) / 10,
        }
    )
    values = summarise(table, "text")
    assert values["text_auroc_value"] == pytest.approx(plain_auroc(table["value"], labels_B))
    assert values["text_auroc_pre"] == pytest.approx(plain_auroc(table["pre"], labels_B))
    assert values["text_spearman_value"] == pytest.approx(plain_spearman(table["value"], table["score"]))
    without = summarise(table.drop(columns="score"), "text")
    assert without["text_spearman_value"] == pytest.approx(plain_spearman(table["value"], labels_B))
    assert values["text_active_positive"] == pytest.approx(table["active"][labels_B].mean())
    assert values["text_q50_negative"] == pytest.approx(np.median(table["value"][~labels_B]))


def test_one_class_or_one_value_gives_no_number():
    one_class = pd.DataFrame({"label": [1, 1], "value": [0.1, 0.2], "pre": [np.nan, 1.0], "active": [True, False]})
    values = summarise(one_class, "token")
    assert np.isnan(values["token_auroc_value"])
    assert np.isnan(values["token_spearman_value"])
    assert np.isnan(values["token_mean_negative"])
    assert values["token_mean_positive"] == pytest.approx(0.15)


def test_scores_are_of_a_data_sets_one_concept(cache, subject, two_concepts):
    texts = [Text(text.text, text.spans, 0.5) for text in two_concepts.splits["test"]]
    split = cache.split("test")
    features = concept_features(subject.loaded.sae, split, np.array([3, 4]))
    assert "score" not in text_table(token_table(split, cache.concepts, features), cache.concepts, texts)
    texts[0] = Text(texts[0].text, texts[0].spans, None)
    table = text_table(token_table(split, cache.concepts, features), ["WHO"], texts)
    assert table["score"].isna().sum() == 1
    assert calibration(table)["n"].sum() == len(table) - 1
    assert "text_spearman_value" in summarise(table, "text")


def test_calibration_puts_every_text_into_its_bin():
    table = pd.DataFrame({"score": [0.0, 0.049, 0.05, 0.15, 1.0, 0.95], "value": [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]})
    bins = calibration(table)
    assert bins["low"].tolist() == pytest.approx([0.0, 0.05, 0.15, 0.95])
    assert bins["n"].tolist() == [2, 1, 1, 2]
    assert bins["mean"].tolist() == [2.0, 5.0, 7.0, 10.0]
