"""Quality in the language model: exact where the SAE is exact, and everything lost where nothing is handed on."""

import dataclasses

import pytest
import torch

from llama3_SAE import LLama3_SAE
from utils.activation_cache import ActivationCache
from utils.caching import cache_activations
from utils.models import load_tokenizer
from utils.sae import SAE, SAEConfig
from utils.sae_export import SAEBenchView, model_card, push_to_hub, to_saelens
from utils.sae_loading import LoadedSAE, load_sae
from utils.sae_quality import activation_quality, language_model_quality
from utils.train_config import SAE_Train_config
from utils.training import train


@pytest.fixture
def perfect():
    """An SAE that hands on what it gets."""
    sae = SAE(SAEConfig(32, 32, 1, "identity", normalisation="none"))
    sae.encoder.weight.data = torch.eye(32)
    sae.decoder.weight.data = torch.eye(32)
    return sae.requires_grad_(False)


def test_a_perfect_sae_loses_nothing(perfect, tiny_llama, two_concepts, tmp_path):
    cache = ActivationCache(cache_activations(two_concepts, tiny_llama, 0, "block", tmp_path))
    values = activation_quality(perfect, cache.split("test"), 64)
    assert values["fvu"] == pytest.approx(0, abs=1e-9)
    assert values["cosine"] == pytest.approx(1, abs=1e-5)
    assert values["dead_latents"] == 0
    model = LLama3_SAE.attach(tiny_llama.folder, perfect, 0)
    texts = [text.text for text in two_concepts.splits["test"]]
    values = language_model_quality(model, load_tokenizer(tiny_llama), [*texts, "x", ""])
    assert values["ce_sae"] == pytest.approx(values["ce_clean"], abs=1e-6)
    assert values["kl_sae"] == pytest.approx(0, abs=1e-6)
    assert values["ce_recovered"] == pytest.approx(1)
    assert values["kl_ablated"] > 0.01


def test_an_sae_that_gives_zeros_is_the_ablation(perfect, tiny_llama, two_concepts):
    perfect.decoder.weight.zero_()
    model = LLama3_SAE.attach(tiny_llama.folder, perfect, 0)
    texts = [text.text for text in two_concepts.splits["test"]]
    values = language_model_quality(model, load_tokenizer(tiny_llama), texts)
    assert values["ce_recovered"] == pytest.approx(0, abs=1e-6)
    assert values["kl_recovered"] == pytest.approx(0, abs=1e-6)


def test_special_tokens_keep_their_activations(tiny_gemma2):
    from gemma2_SAE import Gemma2_SAE

    model = Gemma2_SAE.attach(tiny_gemma2.folder, SAE(SAEConfig(32, 16, 2)), 1)
    input_ids_BT = load_tokenizer(tiny_gemma2)("Why do you cry ?", return_tensors="pt")["input_ids"]
    untouched_BT = input_ids_BT == 1
    assert untouched_BT.sum() == 1
    with torch.no_grad():
        plain = model(input_ids=input_ids_BT).logits
        with model.ablate(untouched_BT=untouched_BT):
            changed = model(input_ids=input_ids_BT).logits
    assert torch.equal(changed[untouched_BT], plain[untouched_BT])
    assert not torch.allclose(changed[~untouched_BT], plain[~untouched_BT])


EXPORTABLE = [
    SAEConfig(8, 24, 4, "topk-sigmoid"),
    SAEConfig(8, 24, 4, "topk", normalisation="constant_norm", subtract_pre_bias=False),
    SAEConfig(8, 24, 1, "relu", normalisation="none", input_scale=0.3),
    SAEConfig(8, 24, 1, "jumprelu", normalisation="none", input_scale=2.0, subtract_pre_bias=False),
]


@pytest.fixture(params=EXPORTABLE, ids=lambda config: config.activation)
def exportable(request):
    sae = SAE(request.param)
    for parameter in (sae.pre_bias, sae.latent_bias):
        parameter.data.normal_()
    return LoadedSAE(sae.requires_grad_(False), "guided", {"model": "smollm2", "block": 15, "site": "mlp"})


def test_export_to_saelens_and_back_changes_nothing(exportable, tmp_path):
    back = load_sae(f"saelens:{to_saelens(exportable, tmp_path / 'exported')}")
    x_BD = torch.randn(40, 8) * 2
    torch.testing.assert_close(back.sae.encode(x_BD), exportable.sae.encode(x_BD), rtol=1e-5, atol=1e-5)
    ours_BD, theirs_BD = (sae(x_BD).reconstruction_BD for sae in (exportable.sae, back.sae))
    torch.testing.assert_close(theirs_BD, ours_BD, rtol=1e-5, atol=1e-5)
    assert (back.origin["block"], back.origin["site"]) == (15, "mlp")
    assert back.origin["model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_saebench_view_computes_the_same(exportable):
    view, x_BD = SAEBenchView(exportable), torch.randn(3, 5, 8)
    torch.testing.assert_close(view(x_BD), exportable.sae(x_BD).reconstruction_BD)
    torch.testing.assert_close(view.encode(x_BD), exportable.sae.encode(x_BD))
    assert (view.W_enc.shape, view.W_dec.shape, view.b_enc.shape, view.b_dec.shape) == ((8, 24), (24, 8), (24,), (8,))
    assert (view.cfg.d_in, view.cfg.d_sae, view.cfg.hook_layer) == (8, 24, 15)
    assert view.cfg.hook_name == "blocks.15.hook_mlp_out"
    assert (view.dtype, view.device.type) == (torch.float32, "cpu")
    with pytest.raises(ValueError, match="encode them first"):
        view.decode(torch.zeros(2, 24))


def test_a_checkpoint_goes_to_the_hub_with_a_card_of_its_own(two_concepts, tiny_llama, tmp_path, monkeypatch):
    cache = ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "block", tmp_path))
    config = SAE_Train_config(32, str(cache.folder), 2, 8, 1e-3, 1, 32, "topk-sigmoid")
    train(config, cache, tmp_path / "toy_s1")
    card = model_card(tmp_path / "toy_s1", {"FMS@1": 0.5})
    for words in ("guided sparse autoencoder", "block 1 of tinyllama", "0: WHO, 1: NUMBER", "| FMS@1 | 0.5 |", "k = 8"):
        assert words in card
    assert "TopK:" not in card
    guided = dataclasses.replace(
        config, concept_gate="threshold", gate_at=-3.0, gate_margin=2.5, erase="leace", erased_skip=True
    )
    train(guided, cache, tmp_path / "gated_s1")
    gated = model_card(tmp_path / "gated_s1")
    assert "0 where their pre-activation is not above -3, or more than 2.5 below the largest of theirs" in gated
    assert "- 2 linear features of the input go to the decoder" in gated
    uploaded = []

    class Hub:
        def __getattr__(self, name):
            return lambda *args, **kwargs: uploaded.append((name, kwargs))

    monkeypatch.setattr("utils.sae_export.HfApi", Hub)
    assert push_to_hub(tmp_path / "toy_s1", "me/toy", results={"FMS@1": 0.5}).endswith("me/toy")
    assert [name for name, _ in uploaded] == ["create_repo", "upload_folder", "upload_file"]
    assert "resume.safetensors" not in uploaded[1][1]["allow_patterns"]
    assert uploaded[2][1]["path_or_fileobj"] == card.encode()
