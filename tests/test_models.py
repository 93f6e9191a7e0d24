"""How models are found: the registry, local folders, the hub's cache, and the converted SmolLM2."""

import shutil
import time

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from utils import models, smollm2
from utils.atomic import sha256_file, write_json
from utils.errors import UserError
from utils.models import MODELS, compute_dtype, find_model, load_config, load_model, load_tokenizer


def test_registry_holds_the_models_of_the_paper():
    assert set(MODELS) == {
        "llama3", "llama3_instruct", "llama3_70B", "llama3_70B_instruct", "gemma2", "gemma2_2b", "smollm2",
    }  # fmt: skip


def test_a_local_folder_is_known_by_its_weights(tiny_llama, tmp_path):
    first = find_model("mine", str(tiny_llama.folder))
    assert first.revision.startswith("local-")
    shutil.copytree(tiny_llama.folder, tmp_path / "copy")
    assert find_model("mine", str(tmp_path / "copy")).revision == first.revision
    weights = tmp_path / "copy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert find_model("mine", str(tmp_path / "copy")).revision != first.revision


def test_a_refused_licence_says_where_to_accept_it(monkeypatch):
    def refuse(*args, local_files_only=False, **kwargs):
        if local_files_only:
            raise LocalEntryNotFoundError("nothing here")
        request = httpx.Request("GET", "https://huggingface.co")
        raise GatedRepoError("403", response=httpx.Response(403, request=request))

    monkeypatch.setattr(models, "snapshot_download", refuse)
    with pytest.raises(
        UserError, match=r"accept the licence at https://huggingface.co/google/gemma-2-9b and set HF_TOKEN"
    ):
        find_model("gemma2")


def test_a_hub_cache_without_weights_is_not_taken_for_the_model(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    asked = []

    def snapshot(*args, local_files_only=False, **kwargs):
        asked.append(local_files_only)
        if not local_files_only:
            raise LocalEntryNotFoundError("offline")
        return str(tmp_path)

    monkeypatch.setattr(models, "snapshot_download", snapshot)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        find_model("gemma2_2b")
    assert asked == [True, False]
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert find_model("gemma2_2b").folder == tmp_path


def test_a_damaged_converted_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("GUIDED_SAE_CACHE", str(tmp_path))
    folder = smollm2.converted_folder()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    write_json(folder / "checksums.json", {"model.safetensors": sha256_file(folder / "model.safetensors")})
    assert find_model("smollm2").folder == folder
    (folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"model.safetensors: damaged; remove"):
        find_model("smollm2")


def test_smollm2_loads_in_seconds(smollm2):
    start = time.perf_counter()
    model = load_model(find_model("smollm2"), n_blocks=30, device=torch.device("cpu"))
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert load_tokenizer(smollm2).vocab_size == 49_152
    assert time.perf_counter() - start < 60  # a hang, not a speed: benchmarks/demo_cost.py measures that


def test_gemma2_keeps_its_soft_capping(tiny_gemma2):
    model = load_model(tiny_gemma2, n_blocks=1, device=torch.device("cpu"))
    assert model.config._attn_implementation == "eager"
    assert model.config.attn_logit_softcapping == 2.0


def test_models_compute_in_the_type_of_their_weights_on_a_gpu(tiny_llama):
    config = load_config(tiny_llama)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        config.dtype = dtype
        assert compute_dtype(config, torch.device("cuda")) == dtype
        assert compute_dtype(config, torch.device("cpu")) == torch.float32
