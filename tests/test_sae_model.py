"""The model with an SAE is the stock model until a mode is entered, and again when it is left."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gemma2_SAE import Gemma2_SAE
from llama3_SAE import LLama3_SAE
from utils.errors import UserError
from utils.hooks import SITES, output_tensor, site_module
from utils.sae import SAE, SAEConfig

TEXTS = ["Why do you cry at night ?", "Thou art"]


@pytest.fixture(params=["tiny_llama", "tiny_gemma2"])
def folder(request):
    return request.getfixturevalue(request.param).folder


@pytest.fixture
def wrapped_class(folder):
    return Gemma2_SAE if "gemma" in folder.name else LLama3_SAE


@pytest.fixture
def sae():
    return SAE(SAEConfig(32, 64, 8)).eval()


@pytest.fixture
def model(wrapped_class, folder, sae):
    return wrapped_class.attach(folder, sae, 0, concepts=["WHO"])


@pytest.fixture
def stock(folder):
    attention = "eager" if "gemma" in folder.name else "sdpa"
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval()


@pytest.fixture
def inputs(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    encoded = tokenizer(TEXTS, return_tensors="pt", padding=True)
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


@pytest.fixture
def unpadded(inputs):
    """The longer text alone: in float64, Gemma-2's masks overflow on padding."""
    return {name: tensor[:1] for name, tensor in inputs.items()}


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_without_a_mode_it_is_the_stock_model(model, stock, inputs):
    assert torch.equal(logits(model, inputs), logits(stock, inputs))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    for use_cache in (True, False):
        ours = model.generate(**inputs, use_cache=use_cache, **options)
        assert torch.equal(ours, stock.generate(**inputs, use_cache=use_cache, **options))


def test_save_and_load_keep_every_weight(model, wrapped_class, inputs, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    assert type(AutoConfig.from_pretrained(tmp_path / "saved")) is wrapped_class.config_class
    again: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", attn_implementation=model.config._attn_implementation
    )
    assert type(again) is wrapped_class
    assert again.config.sae_concepts == ["WHO"]
    for (name, ours), (other_name, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(ours, theirs), name
    with model.steer({3: 0.7}), again.steer({3: 0.7}):
        assert torch.equal(logits(model, inputs), logits(again, inputs))


def test_a_device_map_and_another_dtype(wrapped_class, folder, sae, inputs):
    model = wrapped_class.attach(folder, sae, 1, device_map="auto", dtype=torch.bfloat16)
    with model.capture() as captured:
        logits(model, inputs)
    assert captured.acts[0].dtype == captured.latents[0].dtype == model.sae.pre_bias.dtype == torch.bfloat16


@pytest.mark.parametrize("site", SITES)
def test_capture_gives_activations_and_latents(wrapped_class, folder, sae, stock, inputs, site):
    model = wrapped_class.attach(folder, sae, 1, site)
    seen = []
    module = site_module(stock, 1, site)
    handle = module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    plain = logits(stock, inputs)
    handle.remove()
    with model.capture() as captured:
        assert torch.equal(logits(model, inputs), plain)
    [acts_BTD] = captured.acts
    assert torch.equal(acts_BTD, seen[0][0] if isinstance(seen[0], tuple) else seen[0])
    with torch.no_grad():
        assert torch.equal(captured.latents[0], sae.encode(acts_BTD))
    logits(model, inputs)
    assert len(captured.acts) == 1


def test_capture_sees_every_step_of_generate(model, inputs):
    with model.capture() as captured:
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    n_tokens = inputs["input_ids"].shape[1]
    assert [acts.shape[1] for acts in captured.acts] == [n_tokens, 1, 1, 1]


def next_block_input(model, inputs):
    """What block 1 receives, in float64 where the model is."""
    seen = []
    handle = site_module(model, 1, "block").register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    logits(model, inputs)
    handle.remove()
    return seen[0]


def test_reconstruct_hands_on_the_reconstruction(model, sae, inputs):
    plain_BTD = next_block_input(model, inputs)
    with torch.no_grad():
        expected_BTD = sae(plain_BTD).reconstruction_BD
    with model.reconstruct():
        torch.testing.assert_close(next_block_input(model, inputs), expected_BTD)
    with model.reconstruct(error_term=True):
        torch.testing.assert_close(next_block_input(model, inputs), plain_BTD)


@pytest.mark.parametrize("beta", ["constant", "active", "balanced"])
def test_steering_equals_the_formula(model, unpadded, beta):
    model = model.double()
    x_BTD = next_block_input(model, unpadded)
    alphas = {0: -1.5, 5: 0.4, 63: 2.0}
    sae = model.sae
    with torch.no_grad():
        f_BTN = sae.encode(x_BTD)
        expected_BTD = x_BTD.clone()
        for latent, alpha in alphas.items():
            f = f_BTN[..., latent : latent + 1]
            weight = {"constant": torch.ones_like(f), "active": (f > 0).double(), "balanced": f if alpha < 0 else 1 - f}
            column_D = sae.decoder.weight[:, latent]
            scale = x_BTD.norm(dim=-1, keepdim=True) / column_D.norm()
            expected_BTD += alpha * weight[beta] * scale * column_D
    with model.steer(alphas, beta=beta):
        torch.testing.assert_close(next_block_input(model, unpadded), expected_BTD, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", ["constant", "active", "balanced"])
def test_padding_and_kept_keys_change_nothing_of_steering(tiny_llama, sae, beta):
    """A left-padded batch, token by token with kept keys and values, against each text alone and at once; float64."""
    model = LLama3_SAE.attach(tiny_llama.folder, sae, 0).double()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama.folder, padding_side="left")
    encoded = tokenizer(TEXTS, return_tensors="pt", padding=True)
    ids_BT, mask_BT = encoded["input_ids"], encoded["attention_mask"]
    positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
    seen, prefilled = [], 3
    handle = site_module(model, 1, "block").register_forward_hook(
        lambda _m, _args, out: seen.append(output_tensor(out))
    )
    with torch.no_grad(), model.steer({5: [0.8, -1.2], 9: 0.5}, beta=beta):
        cache = None
        for start, end in [(0, prefilled), *((t, t + 1) for t in range(prefilled, ids_BT.shape[1]))]:
            own = {"input_ids": ids_BT[:, start:end], "position_ids": positions_BT[:, start:end]}
            cache = model(**own, attention_mask=mask_BT[:, :end], past_key_values=cache, use_cache=True).past_key_values
    stepwise_BTD = torch.cat(seen, dim=1)
    for row, (text, alpha) in enumerate(zip(TEXTS, (0.8, -1.2), strict=True)):
        seen.clear()
        with torch.no_grad(), model.steer({5: alpha, 9: 0.5}, beta=beta):
            model(**tokenizer(text, return_tensors="pt"), use_cache=False)
        n_padding = int((mask_BT[row] == 0).sum())
        torch.testing.assert_close(stepwise_BTD[row, n_padding:], seen[0][0], rtol=1e-10, atol=1e-10)
    handle.remove()
    assert int((mask_BT == 0).sum()) > 0


def test_steering_by_nothing_changes_nothing(model, stock, inputs):
    plain = logits(stock, inputs)
    for alphas in ({}, {3: 0.0}, {3: 0, 4: -0.0}):
        with model.steer(alphas, beta="balanced"):
            assert torch.equal(logits(model, inputs), plain)


@pytest.mark.parametrize("beta", ["constant", "active", "balanced"])
def test_each_row_has_its_own_strength(model, unpadded, beta):
    model = model.double()
    rows = {name: tensor.repeat(3, 1) for name, tensor in unpadded.items()}
    with model.steer({5: [0.4, 0.0, -1.0], 9: 0.3}, beta=beta):
        together = next_block_input(model, rows)
    for row, alpha in enumerate([0.4, 0.0, -1.0]):
        with model.steer({5: alpha, 9: 0.3}, beta=beta):
            alone = next_block_input(model, unpadded)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-12, atol=1e-12)
    plain = next_block_input(model, rows)
    with model.steer({5: [0.4, 0.0, -1.0]}, beta=beta):
        assert torch.equal(next_block_input(model, rows)[1], plain[1])
    with pytest.raises(UserError, match="alphas for 2 rows, but the batch has 3 rows"), model.steer({5: [1.0, 2.0]}):
        next_block_input(model, rows)


def test_nested_steers_add_up(model, unpadded):
    model = model.double()
    with model.steer({3: 0.7, 4: -1.2}, beta="active"):
        at_once = next_block_input(model, unpadded)
    with model.steer({3: 0.7}, beta="active"), model.steer({4: -1.2}, beta="active"):
        torch.testing.assert_close(next_block_input(model, unpadded), at_once, rtol=1e-12, atol=1e-12)
    with model.steer({3: 0.3}), model.steer({3: 0.4}):
        twice = next_block_input(model, unpadded)
    with model.steer({3: 0.7}):
        torch.testing.assert_close(next_block_input(model, unpadded), twice, rtol=1e-12, atol=1e-12)


def test_no_hook_outlives_its_mode(model, stock, inputs):
    before, plain = n_hooks(model), logits(stock, inputs)

    def fail_inside():
        with model.capture(), model.reconstruct(), model.steer({1: 1.0}):
            assert n_hooks(model) == before + 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert n_hooks(model) == before
    assert torch.equal(logits(model, inputs), plain)


def test_one_replacement_at_a_time(model, inputs):
    plain = next_block_input(model, inputs)
    with model.reconstruct(), pytest.raises(UserError, match="replaced already"), model.ablate():
        pass
    with model.ablate():
        assert not next_block_input(model, inputs).any()
    assert torch.equal(next_block_input(model, inputs), plain)


def test_a_model_that_accelerate_offloads_keeps_its_sae(wrapped_class, folder, sae, inputs):
    model = wrapped_class.attach(folder, sae, 0, device_map={"model": "cpu", "lm_head": "cpu", "sae": "cpu"})
    for name, tensor in sae.state_dict().items():
        assert torch.equal(model.sae.state_dict()[name], tensor)
    before = sae.pre_bias.detach().clone()
    model.sae.pre_bias.data.add_(1)
    assert torch.equal(sae.pre_bias, before)  # its own copy


def test_modes_may_be_left_in_any_order(model, inputs):
    first, second = model.steer({1: 1.0}), model.steer({2: 1.0})
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    both_left = next_block_input(model, inputs)
    second.__exit__(None, None, None)
    with model.steer({2: 1.0}):
        assert torch.equal(next_block_input(model, inputs), both_left)
    assert not model._effects


def test_what_does_not_fit_is_refused(model, wrapped_class, folder, sae):
    with pytest.raises(UserError, match="block 2 is out of range: the model has blocks 0 to 1"):
        wrapped_class.attach(folder, sae, 2)
    with pytest.raises(UserError, match="unknown site 'head'"):
        wrapped_class.attach(folder, sae, 0, "head")
    with pytest.raises(UserError, match="the SAE takes activations 16 wide, but the model's are 32 wide"):
        wrapped_class.attach(folder, SAE(SAEConfig(16, 64, 8)), 0)
    with pytest.raises(UserError, match="latent 64 is out of range"), model.steer({64: 1.0}):
        pass
    with pytest.raises(UserError, match="beta: 'loud' is unknown"), model.steer({1: 1.0}, beta="loud"):
        pass
    with pytest.raises(UserError, match="must be a finite number"), model.steer({1: float("nan")}):
        pass
