"""The rival methods against their formulas, on a tiny model."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch.nn import functional as F

from tests.rival_parts import ABOUT, PAIRS, PREFIX, TEXTS, batch_of, written
from utils.errors import UserError
from utils.generation import Prompt
from utils.hooks import decoder_blocks, output_tensor, site_module
from utils.labelled_text import Span, Text, whole
from utils.rivals.diffvec import DiffVec
from utils.rivals.formula import M, maximum, with_prefix
from utils.rivals.icv import ICV
from utils.rivals.model_arithmetic import ModelArithmetic
from utils.rivals.preadd import PreAdd
from utils.rivals.states import differences, last_states, make_pairs, pair_up
from utils.rivals.streams import FormulaProcessor
from utils.steerers import Batch


def next_scores(model, tokenizer, text):
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1]


def remember(seen, _module, _inputs, output):
    seen.append(output_tensor(output))


# --- vectors


def test_states_are_those_of_the_last_token_of_every_block(model, tokenizer):
    states_MLD = last_states(model, tokenizer, TEXTS)
    for text, states_LD in zip(TEXTS, states_MLD, strict=True):
        seen: list[torch.Tensor] = []
        keep = partial(remember, seen)
        handles = [block.register_forward_hook(keep) for block in decoder_blocks(model)]
        next_scores(model, tokenizer, text)
        for handle in handles:
            handle.remove()
        expected_LD = torch.stack([acts_BTD[0, -1] for acts_BTD in seen])
        torch.testing.assert_close(states_LD, expected_LD, rtol=1e-4, atol=1e-5)


def test_vectors_are_the_component_and_the_mean(model, tokenizer):
    differences_MLD = differences(model, tokenizer, PAIRS)
    flat_MK = differences_MLD.flatten(1).double().numpy()
    mean_K = flat_MK.mean(axis=0)
    np.testing.assert_allclose(DiffVec.of(differences_MLD, ABOUT).vectors_LD.flatten(), mean_K, rtol=1e-5, atol=1e-6)
    component_K = PCA(n_components=1).fit(flat_MK).components_[0]
    found_K = ICV.of(differences_MLD, ABOUT).vectors_LD.flatten().double().numpy() - mean_K
    assert np.linalg.norm(found_K) == pytest.approx(1, abs=1e-5)
    assert abs(found_K @ component_K) == pytest.approx(1, abs=1e-5)
    assert found_K @ mean_K >= 0


def test_a_planted_direction_is_found_with_its_sign():
    """Pairs that differ along one direction, by different amounts, among noise."""
    torch.manual_seed(0)
    direction_LD = F.normalize(torch.randn(2, 32).flatten(), dim=0).view(2, 32)
    differences_MLD = torch.rand(40, 1, 1) * 5 * direction_LD + 0.01 * torch.randn(40, 2, 32)
    for method in (ICV, DiffVec):
        for sign in (1, -1):
            vectors_LD = method.of(sign * differences_MLD, ABOUT).vectors_LD
            assert F.cosine_similarity(vectors_LD.flatten(), sign * direction_LD.flatten(), dim=0) > 0.99


def test_pairs_hold_the_negative_text_first():
    texts = [whole("Thou art", "S"), whole("you are", None), whole("Thou", "S"), whole("you", None), whole(" ", None)]
    pairs = make_pairs(texts, ["S"], 10, 0)
    assert sorted(pairs) == sorted(pairs, key=lambda pair: pair[0])
    assert {negative for negative, _ in pairs} == {"you are", "you"}
    assert {positive for _, positive in pairs} == {"Thou art", "Thou"}
    with pytest.raises(UserError, match="with and without T"):
        make_pairs(texts, ["T"], 10, 0)


def test_pairs_of_token_labels_are_a_text_and_the_same_without_its_values():
    texts = [Text("Ann lives in Rome.", (Span(0, 3, "NAME"), Span(13, 17, "CITY"))), Text("It rains.", ())]
    assert make_pairs(texts, ["NAME", "CITY"], 5, seed=0) == [("[NAME] lives in [CITY].", "Ann lives in Rome.")]
    assert make_pairs(texts, ["CITY"], 5, seed=0) == [("Ann lives in [CITY].", "Ann lives in Rome.")]


@pytest.fixture
def vectors(model, tokenizer):
    return DiffVec.fit(model, tokenizer, PAIRS, ABOUT)


def mlp_outputs(model, tokenizer, text):
    """The outputs of the first block's feed-forward module, which no other hook has changed before."""
    seen: list[torch.Tensor] = []
    handle = site_module(model, 0, "mlp").register_forward_hook(partial(remember, seen))
    next_scores(model, tokenizer, text)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("strength", [0.1, 1.0, -0.7])
def test_turning_follows_the_formula_and_keeps_norms(model, tokenizer, vectors, strength):
    h_BTD = mlp_outputs(model, tokenizer, TEXTS[0])
    v_D = vectors.vectors_LD[0] * np.sign(strength)
    unit_D = v_D / v_D.norm()
    norm_BT1 = h_BTD.norm(dim=-1, keepdim=True)
    cosine_BT1 = (h_BTD @ -unit_D).unsqueeze(-1) / norm_BT1
    summed_BTD = h_BTD / norm_BT1 + abs(strength) * (1 + cosine_BT1.clamp(min=0)) * unit_D
    expected_BTD = norm_BT1 * summed_BTD / summed_BTD.norm(dim=-1, keepdim=True)
    with vectors.applied(model, [strength], batch_of(tokenizer, TEXTS[:1])) as processors:
        changed_BTD = mlp_outputs(model, tokenizer, TEXTS[0])
    assert processors == []
    torch.testing.assert_close(changed_BTD, expected_BTD, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(changed_BTD.norm(dim=-1, keepdim=True), norm_BT1, rtol=1e-4, atol=1e-6)
    assert torch.equal(mlp_outputs(model, tokenizer, TEXTS[0]), h_BTD)  # nothing is left behind


def test_vectors_with_strength_0_change_no_logit(model, tokenizer, vectors):
    batch = batch_of(tokenizer, TEXTS)
    inputs = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
    with torch.no_grad():
        plain = model(**inputs).logits
        with vectors.applied(model, [0.0] * 3, batch):
            assert torch.equal(model(**inputs).logits, plain)
        with vectors.applied(model, [0.0, 0.5, 0.0], batch):
            mixed = model(**inputs).logits
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    assert not torch.equal(mixed[1], plain[1])


def test_vectors_come_back_as_they_were(vectors, tmp_path):
    vectors.save(tmp_path / "v")
    assert torch.equal(DiffVec.load(tmp_path / "v").vectors_LD, vectors.vectors_LD)
    assert DiffVec.load(tmp_path / "v").made_of == vectors.made_of
    with pytest.raises(UserError, match="holds diffvec, not icv"):
        ICV.load(tmp_path / "v")
    (tmp_path / "v/vectors.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read"):
        DiffVec.load(tmp_path / "v")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: DiffVec(v[:1], ABOUT), "fitted on 1 blocks of width 32, but the model has 2 of width 32"),
        (lambda v: DiffVec(v[:, :8], ABOUT), "fitted on 2 blocks of width 8"),
    ],
)
def test_vectors_of_another_model_are_refused(model, tokenizer, prompts, vectors, make, message):
    with pytest.raises(UserError, match=message):
        written(model, tokenizer, prompts[:1], [1.0], make(vectors.vectors_LD))


def test_what_cannot_be_fitted_is_told(model, tokenizer):
    with pytest.raises(UserError, match="pairs: 2 texts without the attribute, but 1 with it"):
        pair_up(["you", "are"], ["thou"])
    with pytest.raises(UserError, match="no pairs"):
        differences(model, tokenizer, [])
    with pytest.raises(UserError, match="at least 2 pairs"):
        ICV.of(torch.ones(1, 2, 32), ABOUT)


# --- formulas


def formula_scores(model, tokenizer, formula, texts, strengths=None):
    """The next token's scores of each text, by one batch."""
    batch = batch_of(tokenizer, texts)
    positions = (batch.attention_mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    strength_B = torch.tensor(strengths if strengths is not None else [1.0] * len(texts))
    with torch.inference_mode():
        logits = model(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, position_ids=positions).logits
        processor = FormulaProcessor(model, tokenizer, formula, strength_B, batch)
        return processor(batch.input_ids_BT, logits[:, -1]), logits[:, -1]


def test_preadd_with_alpha_1_is_prompting_with_the_prefix(model, tokenizer, prompts):
    behind = []
    for prompt in prompts:
        prefix = tokenizer(PREFIX, add_special_tokens=False)["input_ids"]
        n_special = int(prompt.input_ids[0] == tokenizer.bos_token_id)
        ids = prompt.input_ids[:n_special] + prefix + prompt.input_ids[n_special:]
        behind.append(Prompt(prompt.id, ids, ""))
    plain = PreAdd(PREFIX, tokenizer)
    assert written(model, tokenizer, prompts, [1.0] * 3, plain) == written(model, tokenizer, behind, [0.0] * 3, plain)
    prefixed, logits = formula_scores(model, tokenizer, plain.formula(1.0), TEXTS)
    assert (prefixed - logits.log_softmax(dim=-1)).abs().max() > 1e-3  # the prefix is of some consequence


@pytest.mark.parametrize("make", [PreAdd, ModelArithmetic, lambda p, t: ModelArithmetic(p, t, union=True)])
def test_a_batch_equals_one_by_one_and_strength_0_is_plain(model, tokenizer, prompts, make):
    steerer = make(PREFIX, tokenizer)
    strengths = [-0.6, 0.0, 0.8]
    together = written(model, tokenizer, prompts, strengths, steerer)
    alone = [written(model, tokenizer, [p], [s], steerer)[0] for p, s in zip(prompts, strengths, strict=True)]
    assert together == alone
    assert together[1] == written(model, tokenizer, prompts[1:2], [0.0], steerer)[0]


def test_kept_keys_equal_reading_anew(model, tokenizer, prompts):
    """Token by token with a processor made anew, which reads all that was written."""
    formula = M * 1.6 - with_prefix(PREFIX) * 0.6
    ids = list(prompts[0].input_ids)
    for _ in range(5):
        batch = Batch(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
        with torch.inference_mode():
            logits = model(batch.input_ids_BT).logits[:, -1]
            scores = FormulaProcessor(model, tokenizer, formula, torch.ones(1), batch)(batch.input_ids_BT, logits)
        token = int(scores.argmax())
        if token == model.generation_config.eos_token_id:
            break
        ids.append(token)
    anew = tokenizer.decode(ids[len(prompts[0].input_ids) :], skip_special_tokens=True)
    assert written(model, tokenizer, prompts[:1], [-0.6], PreAdd(PREFIX, tokenizer)) == [anew]


def test_linear_arithmetic_with_06_is_preadd_with_15(model, tokenizer):
    """(M - 0.6 M_bad) / 0.4 = 2.5 M - 1.5 M_bad."""
    linear, _ = formula_scores(model, tokenizer, ModelArithmetic(PREFIX, tokenizer).formula(-0.6), TEXTS)
    preadd, _ = formula_scores(model, tokenizer, PreAdd(PREFIX, tokenizer).formula(-1.5), TEXTS)
    torch.testing.assert_close(linear, preadd, rtol=1e-4, atol=1e-4)


def test_in_the_union_tokens_the_bad_model_likes_less_keep_their_log_probability(model, tokenizer):
    union, logits = formula_scores(model, tokenizer, M - maximum(with_prefix(PREFIX), M) * 0.96, TEXTS)
    bad, _ = formula_scores(model, tokenizer, with_prefix(PREFIX), TEXTS)
    log_p = logits.log_softmax(dim=-1)
    less = bad < log_p
    assert 0 < less.sum() < less.numel()
    torch.testing.assert_close(union[less], log_p[less], rtol=1e-3, atol=1e-3)
    assert (union[~less] <= log_p[~less] + 1e-3).all()


def test_a_classifier_speaks_of_the_likeliest_tokens_only(model, tokenizer):
    asked: list[str] = []

    def attribute(texts):
        asked.extend(texts)
        return [0.9 if "e" in text.removeprefix(TEXTS[0]) else 0.1 for text in texts]

    steerer = ModelArithmetic(PREFIX, tokenizer, attribute=attribute)
    with_it, logits = formula_scores(model, tokenizer, steerer.formula(0.5), TEXTS[:1])
    without, _ = formula_scores(model, tokenizer, ModelArithmetic(PREFIX, tokenizer).formula(0.5), TEXTS[:1])
    top = logits[0].topk(50).indices
    assert len(asked) == 50
    others = torch.ones_like(logits[0], dtype=torch.bool)
    others[top] = False
    torch.testing.assert_close(with_it[0][others], without[0][others])
    gain = (with_it - without)[0][top] * 1.5 / 0.5
    assert {round(float(value), 3) for value in gain.exp()} <= {0.9, 0.1}


@pytest.mark.parametrize(
    ("steerer", "strength", "message"),
    [
        (lambda t: PreAdd(" ", t), 1.0, "a prefix must not be empty"),
        (lambda t: PreAdd(PREFIX, t), float("nan"), "must be a finite number"),
        (lambda t: ModelArithmetic(PREFIX, t), -1.0, "must sum to a positive number"),
        (lambda t: ModelArithmetic(PREFIX, t), -3.0, "must sum to a positive number"),
        (lambda t: PreAdd(PREFIX, t), 1e300, "choose a smaller strength"),
    ],
)
def test_bad_formulas_are_told(model, tokenizer, prompts, steerer, strength, message):
    with pytest.raises(UserError, match=message):
        written(model, tokenizer, prompts[:1], [strength], steerer(tokenizer))


def test_what_decides_completions_can_be_written_down(tokenizer, vectors):
    for steerer in (vectors, PreAdd(PREFIX, tokenizer), ModelArithmetic(PREFIX, tokenizer, union=True)):
        assert json.loads(json.dumps(steerer.made_of))["method"] == steerer.name
