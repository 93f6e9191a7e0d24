"""Detection of personal data against hand counts, and each detector on what it must find."""

import numpy as np
import pytest

from utils.activation_cache import ActivationCache
from utils.caching import cache_activations
from utils.detection import (
    UNKNOWN_TYPE,
    classes_of_latents,
    classes_of_presidio,
    confusion,
    detection_measures,
    probe_activations,
    probe_latents,
    true_classes,
)
from utils.errors import UserError
from utils.labelled_text import LabelledText, Span, Text
from utils.models import load_tokenizer
from utils.presidio import Presidio
from utils.sae import SAE, SAEConfig

CONCEPTS = ["A", "B"]


def test_the_largest_latent_names_the_class_and_none_means_o():
    values_BC = np.array([[0.2, 0.9], [0.5, 0.0], [0.0, 0.0], [0.4, 0.4]], np.float32)
    assert classes_of_latents(values_BC).tolist() == [1, 0, 2, 0]
    assert true_classes(np.array([[0, 1], [1, 1], [0, 0]], np.int8)).tolist() == [1, 0, 2]


def test_measures_are_those_counted_by_hand():
    true_B = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    found_B = np.array([0, 1, 1, 2, 2, 2, 0, 2])
    by_class = detection_measures(true_B, found_B, CONCEPTS)
    assert by_class["A"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n_tokens": 2}
    overall = by_class["all"]
    assert overall["f1_micro"] == overall["accuracy"] == 5 / 8
    assert overall["f1_macro"] == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert overall["f1_macro_concepts"] == overall["f1_micro_concepts"] == 0.5
    assert overall["balanced_accuracy"] == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert (overall["any_precision"], overall["any_recall"]) == (0.75, 0.75)
    assert confusion(true_B, found_B, 2).tolist() == [[1, 1, 0], [0, 1, 1], [1, 0, 3]]


def test_false_alarms_of_a_kind_that_does_not_occur_count():
    true_B, found_B = np.array([0, 0, 2, 2, 2, 2, 2, 2]), np.array([0, 0, 1, 1, 1, 2, 2, 2])
    overall = detection_measures(true_B, found_B, CONCEPTS)["all"]
    assert overall["balanced_accuracy"] == 0.75
    assert overall["f1_micro"] == overall["accuracy"] == 5 / 8
    assert overall["f1_micro_concepts"] == pytest.approx(4 / 7)


def test_a_latent_that_is_off_is_never_named():
    assert classes_of_latents(np.array([[-1.0, 0.0], [0.0, 0.0]], np.float32)).tolist() == [0, 2]


def test_another_type_is_found_but_of_no_concept():
    overall = detection_measures(np.array([0, 2]), np.array([UNKNOWN_TYPE, 2]), CONCEPTS)["all"]
    assert overall["any_f1"] == 1.0
    assert overall["f1_micro_concepts"] == 0.0
    assert overall["accuracy"] == 0.5


@pytest.fixture
def splits(two_concepts, tiny_llama, tmp_path):
    cache = ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path))
    return cache.split("train"), cache.split("test")


def test_probes_learn_what_is_in_the_activations(splits):
    train, test = splits
    true_B = true_classes(test.label_BC)
    by_activations = probe_activations(train, test, 10_000, seed=0)
    sae = SAE(SAEConfig(n_inputs=32, n_latents=128, k=32)).requires_grad_(False)
    by_latents = probe_latents(sae, train, test, 10_000, seed=0)
    most_frequent = np.bincount(true_B).max() / len(true_B)
    assert (by_activations == true_B).mean() > most_frequent + 0.1
    assert (by_latents == true_B).mean() > most_frequent + 0.05
    few = probe_activations(train, test, 40, seed=0)
    assert few.shape == true_B.shape


@pytest.fixture(scope="module")
def presidio():
    return Presidio.load()


def test_presidio_finds_what_rules_can_find_without_the_net(presidio, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("the net was asked"))
    text = "write to anna@example.org or 10.1.2.3 , card 4111111111111111"
    found = {text[span.start : span.end]: span.concept for span in presidio.spans(text)}
    assert found["anna@example.org"] == "EMAIL"
    assert found["10.1.2.3"] == "IP"
    assert found["4111111111111111"] == "?"
    spans = (Span(9, 25, "EMAIL"), Span(text.index("10."), text.index(" ,"), "IP"))
    data = LabelledText("toy", ["EMAIL", "IP"], {"test": [Text(text, spans)]})
    split = ActivationCache(cache_activations(data, tiny_llama, 0, "block", tmp_path)).split("test")
    classes_B = classes_of_presidio(presidio, split, data.splits["test"], load_tokenizer(tiny_llama), data.concepts)
    true_B = true_classes(split.label_BC)
    assert (classes_B[true_B < 2] == true_B[true_B < 2]).all()
    assert UNKNOWN_TYPE in classes_B[true_B == 2]


def test_no_label_to_learn_is_refused(two_concepts, tiny_llama, tmp_path):
    for texts in two_concepts.splits.values():
        texts[:] = [Text(text.text) for text in texts]
    cache = ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path))
    with pytest.raises(UserError, match="tokens have the same label"):
        probe_activations(cache.split("train"), cache.split("test"), 100, seed=0)
