"""The files of a cache: exact round trips, equal to what `datasets` reads, safe against damage."""

import numpy as np
import pytest
from datasets import load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import cache_building
from utils.activation_cache import ActivationCache
from utils.activation_store import TokenRows, cache_name, read_shard, row_features, write_shard
from utils.caching import cache_activations
from utils.errors import UserError


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 50),
    st.integers(1, 20),
    st.integers(0, 40),
    st.sampled_from(["float16", "float32"]),
    st.integers(0, 99),
)
def test_shard_round_trip_is_exact(tmp_path_factory, n_rows, d_model, n_concepts, dtype, seed):
    random = np.random.default_rng(seed)
    rows = TokenRows(
        random.normal(size=(n_rows, d_model)).astype(dtype),
        random.integers(0, 2, size=(n_rows, n_concepts)).astype(np.int8),
        *(random.integers(0, 1 << 30, size=n_rows).astype(np.int32) for _ in range(3)),
    )
    path = tmp_path_factory.mktemp("shard") / "data.arrow"
    features = row_features(d_model, n_concepts, dtype)
    write_shard(path, rows, features)
    back = read_shard(path, features)
    for name in ("acts", "label", "input_ids", "text_id", "position"):
        np.testing.assert_array_equal(getattr(back, name), getattr(rows, name), strict=True)


@pytest.fixture
def cache(two_concepts, tiny_llama, tmp_path):
    # A row is 64 bytes, so that texts spread over several shards.
    return ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "mlp", tmp_path, shard_bytes=64 * 100))


def test_datasets_opens_the_cache_and_reads_the_same(cache):
    loaded = load_from_disk(cache.folder)
    assert set(loaded) == {"train", "test"}
    for name, rows in loaded.items():
        split = cache.split(name)
        assert len(cache.manifest["splits"][name]["shards"]) > 1
        assert len(rows) == len(split)
        np.testing.assert_array_equal(np.array(rows["acts"], np.float32), split.acts(np.arange(len(split))))
        np.testing.assert_array_equal(np.array(rows["label"]), split.label_BC)
        np.testing.assert_array_equal(np.array(rows["text_id"]), split.text_id_B)


def test_rows_come_in_the_order_asked_for(cache):
    split = cache.split("train")
    everything = split.acts(np.arange(len(split)))
    wanted = np.random.default_rng(0).permutation(len(split))
    np.testing.assert_array_equal(split.acts(wanted), everything[wanted])
    np.testing.assert_array_equal(np.concatenate([acts for _, acts in split.batches(7)]), everything)


def test_shard_size_changes_no_value(two_concepts, tiny_llama, cache, tmp_path):
    whole = ActivationCache(cache_activations(two_concepts, tiny_llama, 1, "mlp", tmp_path / "one"))
    assert len(whole.manifest["splits"]["train"]["shards"]) == 1
    for name in ("train", "test"):
        rows = np.arange(len(whole.split(name)))
        np.testing.assert_allclose(whole.split(name).acts(rows), cache.split(name).acts(rows), rtol=2e-3, atol=1e-3)
        np.testing.assert_array_equal(whole.split(name).label_BC, cache.split(name).label_BC)


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(two_concepts, tiny_llama, tmp_path, monkeypatch, cache):
    calls = []
    original = cache_building.write_shard

    def fail_at_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(cache_building, "write_shard", fail_at_third)
    out = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        cache_activations(two_concepts, tiny_llama, 1, "mlp", out, shard_bytes=64 * 100)
    name = cache.folder.name
    assert not (out / name).exists()
    with pytest.raises(UserError, match="still being written"):
        ActivationCache(out / name)
    cache_activations(two_concepts, tiny_llama, 1, "mlp", out, shard_bytes=64 * 100)
    n_shards = sum(len(entry["shards"]) for entry in cache.manifest["splits"].values())
    assert len(calls) == n_shards + 1  # the two finished ones were not made again
    assert not list(out.glob(".building-*"))
    for path in cache.folder.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (out / name / path.relative_to(cache.folder)).read_bytes(), path


def test_the_same_command_does_nothing_and_another_is_refused(two_concepts, tiny_llama, tmp_path, cache):
    before = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*")}
    cache_activations(two_concepts, tiny_llama, 1, "mlp", tmp_path, shard_bytes=64 * 100)
    assert {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*")} == before
    with pytest.raises(UserError, match="max_texts: None -> 5"):
        cache_activations(two_concepts, tiny_llama, 1, "mlp", tmp_path, shard_bytes=64 * 100, max_texts=5)


def test_damaged_shards_are_named(cache):
    path = cache.folder / "train" / cache.manifest["splits"]["train"]["shards"][0]["file"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=f"{path.name}.*damaged"):
        ActivationCache(cache.folder).split("train")


def test_manifest_counts_what_is_there(cache, two_concepts):
    entry = cache.manifest["splits"]["train"]
    split = cache.split("train")
    assert entry["tokens"] == len(split)
    assert entry["texts"] == len(two_concepts.splits["train"])
    assert list(entry["positive_tokens"].values()) == split.label_BC.sum(axis=0).tolist()
    assert cache.concepts == ["WHO", "NUMBER"]


def test_names_tell_model_dataset_block_and_site():
    assert cache_name("smollm2", "Combi_SP-tox_111", 3, "block") == "smollm2-Combi_SP-tox_111-B03-block"
