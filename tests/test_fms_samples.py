"""The samples of FMS against a slow re-statement."""

import numpy as np
import pytest
import torch
from filelock import FileLock

from utils.activation_cache import ActivationCache
from utils.atomic import lock_file
from utils.caching import cache_activations
from utils.errors import UserError
from utils.extraction import Extractor
from utils.fms_samples import balanced_rows, encode_rows, pool_cached, pool_texts
from utils.models import load_tokenizer
from utils.sae import SAE, SAEConfig
from utils.tokens import tokenise


@pytest.fixture
def split(two_concepts, tiny_llama, tmp_path):
    return ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path)).split("train")


@pytest.fixture
def sae():
    return SAE(SAEConfig(n_inputs=32, n_latents=48, k=6))


def test_text_means_are_means_over_each_texts_tokens(split, sae):
    pooled = pool_cached(sae, split)
    assert pooled.text_ids_B.tolist() == list(range(12))
    acts = split.acts(np.arange(len(split)))
    for text_id in range(12):
        own = split.text_id_B == text_id
        with torch.no_grad():
            expected_N = sae.encode(torch.from_numpy(acts[own])).numpy().mean(axis=0)
        np.testing.assert_allclose(pooled.means_BN[text_id], expected_N, rtol=1e-5, atol=1e-6)
        assert pooled.labels_BC[text_id].tolist() == split.label_BC[own].max(axis=0).tolist() == [1, 1]


def test_pooling_from_the_model_equals_pooling_from_the_cache(sae, two_concepts, tiny_llama, tmp_path):
    folder = cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path, dtype="float32")
    split = ActivationCache(folder).split("train")
    texts = two_concepts.splits["train"]
    tokenised = tokenise(texts, list(range(12)), load_tokenizer(tiny_llama), two_concepts.concepts, 128)
    extractor = Extractor.load(tiny_llama, 1, "block", batch_tokens=40)
    live, cached = pool_texts(sae, extractor, tokenised), pool_cached(sae, split)
    assert live.text_ids_B.tolist() == cached.text_ids_B.tolist()
    assert live.labels_BC.tolist() == cached.labels_BC.tolist()
    np.testing.assert_allclose(live.means_BN, cached.means_BN, rtol=1e-3, atol=1e-4)


def test_balanced_rows_take_all_positives_and_as_many_others(split, sae):
    labels_B = split.label_BC[:, 0]
    rows_B = balanced_rows(labels_B, np.random.default_rng(0))
    assert set(np.flatnonzero(labels_B)) <= set(rows_B)
    assert labels_B[rows_B].sum() * 2 == len(rows_B) == len(set(rows_B))
    with torch.no_grad():
        expected_BN = sae.encode(torch.from_numpy(split.acts(rows_B))).numpy()
    np.testing.assert_allclose(encode_rows(sae, split, rows_B), expected_BN, rtol=1e-6)


def test_two_processes_do_not_write_one_cache(two_concepts, tiny_llama, tmp_path):
    building = tmp_path / ".building-tinyllama-toy-B00-block"
    with FileLock(lock_file(building)), pytest.raises(UserError, match="another run is writing this cache"):
        cache_activations(two_concepts, tiny_llama, 0, "block", tmp_path)
