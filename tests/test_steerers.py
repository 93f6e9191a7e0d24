"""All ways of steering behind one interface: fitted, used, saved and loaded alike."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier

from gemma2_SAE import Gemma2_SAE
from llama3_SAE import LLama3_SAE
from tests.rival_parts import PAIRS, PREFIX, TEXTS, batch_of, written
from utils.errors import UserError
from utils.latent_steerer import LatentSteerer
from utils.rivals.diffvec import DiffVec
from utils.rivals.icv import ICV
from utils.rivals.model_arithmetic import ModelArithmetic
from utils.rivals.preadd import PreAdd
from utils.sae import SAE, SAEConfig

# --- one interface


@pytest.fixture
def with_sae(source, tokenizer):
    kind = LLama3_SAE if "llama" in str(source.folder) else Gemma2_SAE
    torch.manual_seed(1)
    model = kind.attach(source.folder, SAE(SAEConfig(32, 64, 16)), 0)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


FITTED: dict[Any, dict[str, Any]] = {
    ICV: {"seed": 0},
    DiffVec: {"seed": 0},
    PreAdd: {"prefixes": [PREFIX, "sweet friend"]},
    ModelArithmetic: {"prefixes": [PREFIX, "sweet friend"]},
    LatentSteerer: {"beta": "constant"},
}


@pytest.mark.parametrize("method", FITTED)
def test_all_are_fitted_used_saved_and_loaded_in_one_way(with_sae, tokenizer, prompts, tmp_path, method):
    steerer = method.fit(with_sae, tokenizer, PAIRS, FITTED[method])
    batch = batch_of(tokenizer, TEXTS)
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    plain = with_sae.generate(**inputs, **options)
    with steerer(with_sae, 0.0):
        assert torch.equal(with_sae.generate(**inputs, **options), plain)
    with_sae.generation_config.eos_token_id = None
    with steerer(with_sae, 0.9):
        steered = with_sae.generate(**inputs, **options)
        with pytest.raises(UserError, match="without beams"):
            with_sae.generate(**inputs, num_beams=2)
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in steered[:, inputs["input_ids"].shape[1] :]]
    assert texts == written(with_sae, tokenizer, prompts, [0.9] * 3, steerer)
    assert torch.equal(with_sae.generate(**inputs, **options), plain)
    steerer.save(tmp_path / "s")
    assert method.load(tmp_path / "s", tokenizer).made_of == steerer.made_of


def test_the_prefix_that_invites_the_attribute_is_taken(model, tokenizer):
    # The same words come again behind a text that holds them, where a model attends to them at all; here the choice is
    # held against the likelihoods themselves.
    def nll(prefix, text):
        ids = tokenizer(prefix)["input_ids"] + tokenizer(" " + text, add_special_tokens=False)["input_ids"]
        n = len(tokenizer(prefix)["input_ids"])
        with torch.inference_mode():
            log_p_TV = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return -np.mean([log_p_TV[i - 1, ids[i]].item() for i in range(n, len(ids))])

    prefixes = ["Thou art a villain", "Why do you", "sweet friend ,"]
    gains = [np.mean([nll(p, neg) - nll(p, pos) for neg, pos in PAIRS]) for p in prefixes]
    chosen = PreAdd.fit(model, tokenizer, PAIRS, {"prefixes": prefixes}).prefix
    assert chosen == prefixes[int(np.argmax(gains))]


def test_the_latent_that_tells_pairs_apart_is_found(with_sae, tokenizer):
    guided = with_sae.config.sae_concepts = ["a", "b"]
    assert LatentSteerer.fit(with_sae, tokenizer, PAIRS, {"concepts": ["b"]}).latents == (1,)
    with pytest.raises(UserError, match="guided by a, b, not by c"):
        LatentSteerer.fit(with_sae, tokenizer, PAIRS, {"concepts": ["c"]})
    guided.clear()
    (latent,) = LatentSteerer.fit(with_sae, tokenizer, PAIRS, {}).latents
    with with_sae.capture() as seen, torch.inference_mode():
        for text in (text for pair in PAIRS for text in pair):
            with_sae(**tokenizer(text, return_tensors="pt"))
    n_special = len(tokenizer("")["input_ids"])
    means_BN = np.stack([latents[0, n_special:].mean(dim=0).numpy() for latents in seen.latents])
    stump = DecisionTreeClassifier(max_depth=1, random_state=0)
    impurities = [stump.fit(means_B[:, None], [0, 1] * 3).tree_.impurity[1:].sum() for means_B in means_BN.T]
    assert impurities[latent] == min(impurities)


def test_an_empty_fit_is_told(with_sae, tokenizer):
    for method, about in FITTED.items():
        with pytest.raises(UserError, match="pairs"):
            method.fit(with_sae, tokenizer, [], about)


def test_settings_of_another_kind_are_told(tokenizer, tmp_path):
    PreAdd(PREFIX, tokenizer).save(tmp_path / "p")
    with pytest.raises(UserError, match="needs the model's tokenizer"):
        PreAdd.load(tmp_path / "p")
    with pytest.raises(UserError, match="holds preadd, not model-arithmetic"):
        ModelArithmetic.load(tmp_path / "p", tokenizer)
    with pytest.raises(UserError, match="no such file"):
        PreAdd.load(tmp_path / "q", tokenizer)
