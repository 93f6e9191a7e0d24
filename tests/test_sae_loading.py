"""Every format read here gives what its own definition says; what cannot be loaded is one line."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.sae_parts import D, K, N, assert_same, contiguous, released_tensors, top, write_json
from utils.errors import UserError
from utils.sae import SAE, SAEConfig
from utils.sae_formats.common import hook_point
from utils.sae_loading import FORMATS, get_model, load_sae


def write_sparsify(folder, p, **changes):
    described = {"d_in": D, "k": K, "expansion_factor": N // D, "normalize_decoder": True} | changes
    write_json(folder / "cfg.json", described)
    tensors = {"encoder.weight": p["W_enc"].T, "encoder.bias": p["b_enc"], "W_dec": p["W_dec"], "b_dec": p["b_dec"]}
    save_file(contiguous(tensors), folder / "sae.safetensors")


@pytest.mark.parametrize("n_latents", [{}, {"num_latents": 0}, {"num_latents": N}])
def test_sparsify(parts, x, tmp_path, n_latents):
    write_sparsify(tmp_path / "layers.10", parts, **n_latents)
    loaded = load_sae(f"sparsify:{tmp_path}/layers.10")
    pre_BN = torch.relu((x - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"])
    latents_BN = pre_BN * top(pre_BN)
    assert_same(loaded, x, latents_BN, latents_BN @ parts["W_dec"] + parts["b_dec"])
    assert (loaded.origin["block"], loaded.origin["site"]) == (10, "block")
    write_sparsify(tmp_path / "layers.3.mlp", parts)
    assert load_sae(f"sparsify:{tmp_path}/layers.3.mlp").origin["site"] == "mlp"


def test_sparsify_signed_keeps_negative_latents(parts, x, tmp_path):
    write_sparsify(tmp_path / "layers.1", parts, signed=True)
    pre_BN = (x - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    latents_BN = pre_BN * top(pre_BN.abs())
    assert (latents_BN < 0).any()
    loaded = load_sae(f"sparsify:{tmp_path}/layers.1")
    assert_same(loaded, x, latents_BN, latents_BN @ parts["W_dec"] + parts["b_dec"])


def write_saelens(folder, p, **changes):
    described = {"d_in": D, "d_sae": N, "dtype": "float32", "apply_b_dec_to_input": True} | changes
    write_json(folder / "cfg.json", described)
    names = ["W_enc", "b_enc", "W_dec", "b_dec"] + ["threshold"] * (changes.get("architecture") == "jumprelu")
    save_file({name: p[name] for name in names}, folder / "sae_weights.safetensors")
    return load_sae(f"saelens:{folder}")


def test_saelens_topk_with_layer_norm(parts, x, tmp_path):
    metadata = {"model_name": "gpt2", "hook_name": "blocks.7.hook_resid_post"}
    loaded = write_saelens(
        tmp_path, parts, architecture="topk", k=K, normalize_activations="layer_norm", metadata=metadata
    )
    mean, std = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    z = (x - mean) / (std + 1e-5)
    pre_BN = (z - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    latents_BN = torch.relu(pre_BN) * top(pre_BN)
    assert_same(loaded, x, latents_BN, (latents_BN @ parts["W_dec"] + parts["b_dec"]) * std + mean)
    assert {key: loaded.origin[key] for key in ("model", "block", "site")} == {
        "model": "gpt2", "block": 7, "site": "block",
    }  # fmt: skip


def test_saelens_topk_of_latents_rescaled_by_their_decoder_norm(parts, x, tmp_path):
    loaded = write_saelens(tmp_path, parts, architecture="topk", k=K, rescale_acts_by_decoder_norm=True)
    norm_N = parts["W_dec"].norm(dim=1)
    pre_BN = ((x - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]) * norm_N
    latents_BN = torch.relu(pre_BN) * top(pre_BN)
    assert_same(loaded, x, latents_BN, latents_BN @ (parts["W_dec"] / norm_N[:, None]) + parts["b_dec"])


def test_saelens_jumprelu_without_pre_bias(parts, x, tmp_path):
    loaded = write_saelens(
        tmp_path, parts, architecture="jumprelu", apply_b_dec_to_input=False,
        normalize_activations="constant_norm_rescale", hook_name="blocks.3.hook_resid_pre",
    )  # fmt: skip
    scale = math.sqrt(D) / x.norm(dim=1, keepdim=True)
    pre_BN = x * scale @ parts["W_enc"] + parts["b_enc"]
    latents_BN = torch.relu(pre_BN) * (pre_BN > parts["threshold"])
    assert_same(loaded, x, latents_BN, (latents_BN @ parts["W_dec"] + parts["b_dec"]) / scale)
    assert (loaded.origin["block"], loaded.origin["site"]) == (2, "block")


def test_saelens_5_writes_topk_as_standard(parts, x, tmp_path):
    loaded = write_saelens(
        tmp_path, parts, architecture="standard", activation_fn_str="topk", activation_fn_kwargs={"k": K},
        hook_name="blocks.0.hook_mlp_out", normalize_activations=False,
    )  # fmt: skip
    pre_BN = (x - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    latents_BN = torch.relu(pre_BN) * top(pre_BN)
    assert_same(loaded, x, latents_BN, latents_BN @ parts["W_dec"] + parts["b_dec"])
    assert loaded.origin["site"] == "mlp"


def test_gemma_scope(parts, x, tmp_path):
    folder = tmp_path / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in parts.items()})
    loaded = load_sae(f"gemma_scope:{folder}")
    pre_BN = x @ parts["W_enc"] + parts["b_enc"]
    latents_BN = torch.relu(pre_BN) * (pre_BN > parts["threshold"])
    assert_same(loaded, x, latents_BN, latents_BN @ parts["W_dec"] + parts["b_dec"])
    assert loaded.origin["block"] == 20
    assert_same(
        load_sae(f"gemma_scope:{folder}/params.npz"), x, latents_BN, latents_BN @ parts["W_dec"] + parts["b_dec"]
    )


def test_llama_scope(parts, x, tmp_path):
    write_json(
        tmp_path / "hyperparams.json",
        {
            "d_model": D, "d_sae": N, "jump_relu_threshold": 0.4, "hook_point_in": "blocks.15.hook_resid_post",
            "dataset_average_activation_norm": {"in": 7.5, "out": 7.5},
        },
    )  # fmt: skip
    (tmp_path / "checkpoints").mkdir()
    tensors = {
        "encoder.weight": parts["W_enc"].T, "encoder.bias": parts["b_enc"],
        "decoder.weight": parts["W_dec"].T, "decoder.bias": parts["b_dec"],
    }  # fmt: skip
    save_file(contiguous(tensors), tmp_path / "checkpoints/final.safetensors")
    scale = math.sqrt(D) / 7.5
    pre_BN = x * scale @ parts["W_enc"] + parts["b_enc"]
    latents_BN = torch.relu(pre_BN) * (pre_BN > 0.4)
    loaded = load_sae(f"llama_scope:{tmp_path}")
    assert_same(loaded, x, latents_BN, (latents_BN @ parts["W_dec"] + parts["b_dec"]) / scale)
    assert loaded.origin["block"] == 15


def write_dictionary(folder, kind, tensors, **trainer):
    described = {"dict_class": kind, "layer": 4, "lm_name": "gpt2", "submodule_name": "resid_post_layer_4"} | trainer
    write_json(folder / "config.json", {"trainer": described, "buffer": {}})
    torch.save(tensors, folder / "ae.pt")
    return load_sae(f"dictionary_learning:{folder}")


def dictionary_tensors(p, **more):
    encoder = {"encoder.weight": p["W_enc"].T, "encoder.bias": p["b_enc"], "decoder.weight": p["W_dec"].T}
    return encoder | {"b_dec": p["b_dec"]} | more


def test_dictionary_learning(parts, x, tmp_path):
    pre_BN = torch.relu((x - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"])

    def decoded(latents_BN):
        return latents_BN @ parts["W_dec"] + parts["b_dec"]

    topk = dictionary_tensors(parts, k=torch.tensor(K), threshold=torch.tensor(-1.0))
    loaded = write_dictionary(tmp_path / "topk", "AutoEncoderTopK", topk)
    assert_same(loaded, x, pre_BN * top(pre_BN), decoded(pre_BN * top(pre_BN)))
    assert (loaded.origin["block"], loaded.origin["model"]) == (4, "gpt2")
    batch = dictionary_tensors(parts, k=torch.tensor(K), threshold=torch.tensor(0.8))
    loaded = write_dictionary(tmp_path / "batch", "BatchTopKSAE", batch)
    assert_same(loaded, x, pre_BN * (pre_BN > 0.8), decoded(pre_BN * (pre_BN > 0.8)))
    relu = dictionary_tensors(parts)
    relu["bias"] = relu.pop("b_dec")
    # That library gives the decoder's columns unit norm when it loads this class; the latents take the norms over.
    norm_N = parts["W_dec"].norm(dim=1)
    assert_same(write_dictionary(tmp_path / "relu", "AutoEncoder", relu), x, pre_BN * norm_N, decoded(pre_BN))
    jump_BN = x @ parts["W_enc"] + parts["b_enc"]
    jump_BN = jump_BN * (jump_BN > parts["threshold"])
    assert_same(write_dictionary(tmp_path / "jump", "JumpReluAutoEncoder", parts), x, jump_BN, decoded(jump_BN))
    with pytest.raises(UserError, match="its threshold was never set"):
        write_dictionary(tmp_path / "unset", "BatchTopKSAE", topk)
    with pytest.raises(UserError, match="dict_class 'GatedAutoEncoder' is not supported"):
        write_dictionary(tmp_path / "gated", "GatedAutoEncoder", topk)
    with pytest.raises(UserError, match="a backup of a training run"):
        write_dictionary(tmp_path / "backup", "AutoEncoder", {"step": 3, "ae": {}, "optimizer": {}})


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.7.hook_resid_post", (7, "block")), ("blocks.7.hook_resid_pre", (6, "block")),
        ("blocks.7.hook_mlp_out", (7, "mlp")), ("layers.7", (7, "block")), ("layers.7.mlp", (7, "mlp")),
        ("model.layers.7.self_attn", (7, "attention")), ("gpt_neox.layers.7", (7, "block")),
        ("blocks.7.hook_resid_mid", None), ("blocks.7.hook_mlp_in", None), ("blocks.7.attn.hook_q", None),
        ("blocks.7.attn.hook_z", None), ("blocks.0.hook_resid_pre", None), ("embed_tokens", None), (None, None),
    ],
)  # fmt: skip
def test_only_hooks_that_are_our_sites_tell_where_an_sae_belongs(name, place):
    assert hook_point(name) == ({"block": place[0], "site": place[1]} if place else {})


def test_transcoders_and_other_places_are_not_taken_for_our_sites(parts, tmp_path):
    arrays = {name: tensor.numpy() for name, tensor in parts.items()}
    for repository in ("gemma-scope-2b-pt-mlp", "gemma-scope-2b-pt-att", "gemma-scope-2b-pt-transcoders"):
        folder = tmp_path / repository / "layer_3"
        folder.mkdir(parents=True)
        np.savez(folder / "params.npz", **arrays)
    for repository in ("gemma-scope-2b-pt-mlp", "gemma-scope-2b-pt-att"):
        assert "block" not in load_sae(f"gemma_scope:{tmp_path}/{repository}/layer_3").origin
    with pytest.raises(UserError, match="a transcoder, not an SAE"):
        load_sae(f"gemma_scope:{tmp_path}/gemma-scope-2b-pt-transcoders/layer_3")


def test_damaged_files_of_every_kind_are_one_line(parts, tmp_path):
    torch.save(released_tensors(parts), tmp_path / "whole.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "whole.pt").read_bytes()
    for number, length in enumerate(range(1, len(whole) - 1, max(1, len(whole) // 23))):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{number}.pt: "):
            load_sae(f"openai:{path}")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "params.npz")
    with pytest.raises(UserError, match=r"params.npz: cannot be read"):
        load_sae(f"gemma_scope:{tmp_path}")


@pytest.mark.parametrize(("kind", "normalised"), [("TopK", True), ("ReLU", False)])
def test_openai(parts, x, tmp_path, kind, normalised):
    more = {"activation": kind, "stats_last_nonzero": torch.zeros(N)}
    if kind == "TopK":
        more["activation_state_dict"] = {"k": K, "postact_fn": "ReLU"}
    torch.save(released_tensors(parts, **more), tmp_path / "10.pt")
    mean, std = (x.mean(1, keepdim=True), x.std(1, keepdim=True)) if normalised else (0, 1)
    pre_BN = ((x - mean) / (std + 1e-5 * normalised) - parts["b_dec"]) @ parts["W_enc"] + parts["b_enc"]
    latents_BN = torch.relu(pre_BN) * (top(pre_BN) if kind == "TopK" else 1)
    loaded = load_sae(f"openai:{tmp_path}/10.pt")
    assert_same(loaded, x, latents_BN, (latents_BN @ parts["W_dec"] + parts["b_dec"]) * std + mean)
    assert loaded.origin["block"] == 10


def test_what_cannot_be_loaded_is_one_line(parts, tmp_path, tiny_llama):
    with pytest.raises(UserError, match="unknown format 'npy'; known are guided, sparsify, saelens"):
        load_sae("npy:somewhere")
    with pytest.raises(UserError, match="no checkpoint there"):
        load_sae(str(tmp_path / "none"))
    folder = tmp_path / "layers.10"
    write_sparsify(folder, parts)
    with pytest.raises(UserError, match="block 10 is out of range: the model has blocks 0 to 1"):
        get_model("tiny", f"sparsify:{folder}", model_path=str(tiny_llama.folder))
    with pytest.raises(UserError, match="the SAE takes activations 8 wide, but the model's are 32 wide"):
        get_model("tiny", f"sparsify:{folder}", model_path=str(tiny_llama.folder), block=0)
    write_sparsify(folder, parts, d_in=9)
    with pytest.raises(UserError, match=r"decoder.weight is \(8, 24\) instead of \(9, 24\)"):
        load_sae(f"sparsify:{folder}")
    write_sparsify(folder, parts | {"b_dec": torch.full((D,), float("nan"))})
    with pytest.raises(UserError, match="pre_bias holds NaN or inf"):
        load_sae(f"sparsify:{folder}")
    weights = folder / "sae.safetensors"
    save_file({"encoder.weight": torch.zeros(N, D), "extra": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match=r"no encoder.bias; it holds encoder.weight, extra"):
        load_sae(f"sparsify:{folder}")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"sae.safetensors: cannot be read"):
        load_sae(f"sparsify:{folder}")


def test_get_model_attaches_and_pads_left(tiny_llama, tmp_path):
    sae = SAE(SAEConfig(32, 24, K, "topk", normalisation="none"))
    p = {
        "W_enc": sae.encoder.weight.T, "W_dec": sae.decoder.weight.T, "b_enc": sae.latent_bias, "b_dec": sae.pre_bias,
    }  # fmt: skip
    write_sparsify(tmp_path / "layers.1", {name: tensor.detach() for name, tensor in p.items()}, d_in=32)
    model, tokenizer = get_model("tiny", f"sparsify:{tmp_path}/layers.1", model_path=str(tiny_llama.folder))
    assert tokenizer.padding_side == "left"
    encoded = tokenizer(["Why do you cry ?", "Thou"], return_tensors="pt", padding=True)
    with torch.no_grad(), model.capture() as captured:
        model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
    assert captured.latents[0].shape == (*encoded["input_ids"].shape, 24)
    torch.testing.assert_close(captured.latents[0], sae.encode(captured.acts[0]))


def test_every_format_is_tested_here():
    tested = {"guided", "sparsify", "saelens", "gemma_scope", "llama_scope", "dictionary_learning", "openai"}
    assert set(FORMATS) == tested | {"released", "determined"}
