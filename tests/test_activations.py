"""Cached activations against the model's own hidden states, and what becomes a row."""

import re

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from utils.activation_cache import ActivationCache
from utils.caching import cache_activations
from utils.errors import UserError
from utils.hooks import SITES, activations_at, site_module
from utils.labelled_text import LabelledText, Text, whole
from utils.models import load_model

TEXTS = ["Why do you cry at night ?", "Thou art", "I prithee , sweet friend , tarry not so long .", "x"]


def hidden_states(source, text):
    """The model's own hidden states of one text alone, [n_blocks + 1] tensors of [T, D]; input ids beside them."""
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    attention = "eager" if "gemma" in source.name else "sdpa"
    model = AutoModel.from_pretrained(source.folder, dtype=torch.float32, attn_implementation=attention).eval()
    encoded = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=encoded["input_ids"], output_hidden_states=True).hidden_states
    return [state[0].numpy() for state in states], encoded["input_ids"][0].numpy()


@pytest.fixture(params=["tiny_llama", "tiny_gemma2"])
def source(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_rows_equal_hidden_states(source, tmp_path, dtype, tolerance):
    data = LabelledText("few", ["any"], {"train": [whole(text, "any") for text in TEXTS]})
    # Four texts of different lengths in one batch: three of them are padded.
    cache = ActivationCache(cache_activations(data, source, 0, "block", tmp_path, dtype=dtype, batch_tokens=10_000))
    rows = load_from_disk(cache.folder)["train"].to_pandas()
    for text_id, text in enumerate(TEXTS):
        states, input_ids = hidden_states(source, text)
        own = rows[rows["text_id"] == text_id]
        kept = input_ids > 3  # 0 to 3 are special in the tests' tokenizer; Gemma's BOS is among them
        assert own["input_ids"].tolist() == input_ids[kept].tolist()
        assert own["position"].tolist() == np.flatnonzero(kept).tolist()
        np.testing.assert_allclose(np.stack(own["acts"]), states[1][kept], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("site", SITES)
def test_sites_and_both_paddings_agree(source, site):
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    model = load_model(source, n_blocks=2, device=torch.device("cpu"))
    acts = {}
    for side in ("right", "left"):
        tokenizer.padding_side = side
        encoded = tokenizer(TEXTS, return_tensors="pt", padding=True)
        mask_BT = encoded["attention_mask"]
        with torch.no_grad():
            acts_BTD = activations_at(site_module(model, 1, site), model, encoded["input_ids"], mask_BT)
        acts[side] = acts_BTD[mask_BT.bool()]
    assert torch.isfinite(acts["left"]).all()
    torch.testing.assert_close(acts["left"], acts["right"], rtol=1e-5, atol=1e-5)


def test_forward_stops_at_the_hook_and_leaves_no_hook(tiny_llama):
    model = load_model(tiny_llama, n_blocks=2, device=torch.device("cpu"))
    reached = []
    model.layers[1].register_forward_hook(lambda *_: reached.append(True))
    input_ids_BT = torch.tensor([[5, 6, 7]])
    module = site_module(model, 0, "block")
    activations_at(module, model, input_ids_BT, torch.ones_like(input_ids_BT))
    assert not reached
    assert not module._forward_hooks
    model(input_ids=input_ids_BT)
    assert reached


def test_only_the_blocks_up_to_the_hook_are_loaded(tiny_llama):
    assert len(load_model(tiny_llama, n_blocks=1, device=torch.device("cpu")).layers) == 1


def test_special_tokens_written_in_a_text_are_left_out(tiny_llama, tmp_path):
    data = LabelledText("special", [], {"train": [Text("Why <eos> do <pad> you <|turn|> cry")]})
    cache = ActivationCache(cache_activations(data, tiny_llama, 0, "block", tmp_path))
    input_ids = load_from_disk(cache.folder)["train"]["input_ids"]
    assert min(input_ids) > 3
    assert cache.manifest["special_token_ids"] == [0, 1, 2, 3]


def test_a_value_beyond_float16_stops_the_run(tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "utils.extraction.activations_at", lambda module, model, ids, mask: torch.full((*ids.shape, 32), 1e5)
    )
    data = LabelledText("large", [], {"train": [Text("Why")]})
    with pytest.raises(UserError, match="float16; use --dtype float32"):
        cache_activations(data, tiny_llama, 0, "block", tmp_path)
    assert not list(tmp_path.iterdir())
    cache_activations(data, tiny_llama, 0, "block", tmp_path, dtype="float32")


def test_long_texts_are_cut_and_texts_without_tokens_counted(tiny_llama, tmp_path):
    data = LabelledText("long", [], {"train": [Text("night " * 200), Text("<eos>"), Text("ok")]})
    cache = ActivationCache(cache_activations(data, tiny_llama, 0, "block", tmp_path))
    entry = cache.manifest["splits"]["train"]
    assert (entry["texts"], entry["texts_truncated"], entry["texts_without_tokens"]) == (3, 1, 1)
    assert cache.split("train").text_id_B.tolist().count(0) == 128


@pytest.mark.parametrize("load_dtype", ["bfloat16", "float32"])
def test_gemma2_keeps_its_soft_capping_in_every_dtype(tiny_gemma2, tmp_path, load_dtype):
    data = LabelledText("few", [], {"train": [Text(text) for text in TEXTS[:1]]})
    cache = ActivationCache(
        cache_activations(data, tiny_gemma2, 1, "block", tmp_path, dtype="float32", load_dtype=load_dtype)
    )
    assert cache.manifest["compute_dtype"] == load_dtype
    acts_BD = cache.split("train").acts(np.arange(len(cache.split("train"))))

    def last_states(softcapping):
        config = AutoConfig.from_pretrained(tiny_gemma2.folder, attn_logit_softcapping=softcapping)
        model = AutoModel.from_pretrained(
            tiny_gemma2.folder, config=config, dtype=getattr(torch, load_dtype), attn_implementation="eager"
        )
        kept = []
        model.layers[1].register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        encoded = AutoTokenizer.from_pretrained(tiny_gemma2.folder)(TEXTS[0], return_tensors="pt")
        with torch.no_grad():
            model(input_ids=encoded["input_ids"])
        return kept[0][0, 1:].float().numpy()  # without BOS

    np.testing.assert_allclose(acts_BD, last_states(2.0), rtol=1e-5, atol=1e-5)
    assert np.abs(acts_BD - last_states(None)).max() > 0.1


def test_a_model_spread_by_accelerate_gives_the_same(source):
    encoded = AutoTokenizer.from_pretrained(source.folder)(TEXTS[2], return_tensors="pt")
    acts = []
    for device_map in (None, "auto"):
        model = load_model(source, n_blocks=2, device=torch.device("cpu"), device_map=device_map)
        with torch.no_grad():
            acts.append(activations_at(site_module(model, 1, "block"), model, **_batch(encoded)))
    torch.testing.assert_close(acts[0], acts[1], rtol=0, atol=0)


def _batch(encoded):
    return {"input_ids_BT": encoded["input_ids"], "attention_mask_BT": encoded["attention_mask"]}


def test_hooking_leaves_every_logit_as_it_was(source):
    model = AutoModelForCausalLM.from_pretrained(source.folder, attn_implementation="eager").eval()
    encoded = AutoTokenizer.from_pretrained(source.folder)(TEXTS[2], return_tensors="pt")
    with torch.no_grad():
        before = model(**encoded).logits
        for site in SITES:
            activations_at(site_module(model, 0, site), model, **_batch(encoded))
            assert torch.equal(model(**encoded).logits, before)


def test_the_manifest_tells_of_doubtful_texts(tiny_llama, tmp_path):
    data = LabelledText("own", ["X"], {"train": [whole("Why", "X"), Text("Why"), Text("do")]}, counts={"dropped": 3})
    manifest = ActivationCache(cache_activations(data, tiny_llama, 0, "block", tmp_path)).manifest
    assert manifest["text_counts"] == {
        "dropped": 3, "repeated_texts": 1, "texts_with_conflicting_labels": 1, "texts_in_several_splits": 0,
    }  # fmt: skip


def test_a_long_run_says_what_it_will_take(tiny_llama, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("utils.cache_estimate._TOKENS_WORTH_TIMING", 10)
    data = LabelledText("few", [], {"train": [Text(text) for text in TEXTS]})
    with caplog.at_level("INFO"):
        cache_activations(data, tiny_llama, 0, "block", tmp_path)
    announced = "\n".join(record.message for record in caplog.records)
    assert re.search(
        r"\d+ tokens in 1 of 1 shards are to be cached: [\d.]+ kB on disk \(.* free\), .* of memory", announced
    )
    assert re.search(r"about \d+ s; [\d.]+ [MG]B of memory so far", announced)
