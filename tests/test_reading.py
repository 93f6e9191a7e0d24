"""The order of training: one random order whatever the shards, shared by processes, taken up at any step."""

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from utils.activation_cache import ActivationCache
from utils.activation_reader import ActivationReader
from utils.activation_store import TokenRows, row_features, shard_name, write_shard
from utils.atomic import write_json
from utils.cache_building import write_metadata
from utils.cache_plan import group_texts
from utils.index_shuffle import IndexShuffle


def random_rows(n_rows, d_model, n_concepts, dtype, seed):
    random = np.random.default_rng(seed)
    return TokenRows(
        random.normal(size=(n_rows, d_model)).astype(dtype),
        random.integers(0, 2, size=(n_rows, n_concepts)).astype(np.int8),
        *(random.integers(0, 1 << 30, size=n_rows).astype(np.int32) for _ in range(3)),
    )


def write_cache(folder, rows, text_lengths, rows_per_shard):
    """Write a cache of one split, its shards cut as caching cuts them."""
    dtype, d_model, n_concepts = str(rows.acts.dtype), rows.acts.shape[1], rows.label.shape[1]
    features = row_features(d_model, n_concepts, dtype)
    groups = group_texts(np.array(text_lengths), rows_per_shard)
    starts = np.cumsum([0, *text_lengths])
    shards = []
    for number, group in enumerate(groups):
        own = slice(starts[group.start], starts[group.stop])
        columns = (rows.acts, rows.label, rows.input_ids, rows.text_id, rows.position)
        path = folder / "train" / shard_name(number, len(groups))
        write_shard(path, TokenRows(*(column[own] for column in columns)), features)
        shards.append({"file": path.name, "rows": int(own.stop - own.start), "sha256": ""})
    splits = {"train": {"tokens": len(rows), "shards": shards}}
    write_metadata(folder, features, splits)
    concepts = [f"C{n}" for n in range(n_concepts)]
    described = {"dataset": "random", "model": "none", "revision": "", "block": 0, "site": "block"}
    described |= {"format": 1, "concepts": concepts, "dtype": dtype, "d_model": d_model, "splits": splits}
    write_json(folder / "manifest.json", described)
    return ActivationCache(folder).split("train")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=30).filter(any),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(0, 40),
    st.sampled_from(["float16", "float32"]),
    st.data(),
)
def test_any_cache_reads_back_exactly(tmp_path_factory, text_lengths, rows_per_shard, d_model, n_concepts, dtype, data):
    n_rows = sum(text_lengths)
    rows = random_rows(n_rows, d_model, n_concepts, dtype, seed=n_rows)
    folder = tmp_path_factory.mktemp("cache")
    split = write_cache(folder, rows, text_lengths, rows_per_shard)
    everything = np.arange(n_rows)
    for name in ("acts", "label", "input_ids", "text_id", "position"):
        np.testing.assert_array_equal(split.take(name, everything), getattr(rows, name), strict=True)
    some = np.array(data.draw(st.lists(st.integers(0, n_rows - 1), max_size=50)), np.int64)
    np.testing.assert_array_equal(split.acts(some), rows.acts[some].astype(np.float32), strict=True)
    loaded = load_from_disk(folder)["train"]
    np.testing.assert_array_equal(np.array(loaded["acts"], dtype), rows.acts)
    np.testing.assert_array_equal(np.array(loaded["label"], np.int8).reshape(n_rows, n_concepts), rows.label)


@settings(deadline=None)
@given(st.integers(1, 3_000), st.integers(0, 2**32 - 1), st.integers(0, 1_000))
def test_a_shuffle_is_one_to_one_and_any_part_is_the_same(n, seed, epoch):
    order = IndexShuffle(n, seed, epoch)
    numbers = order(np.arange(n))
    assert sorted(numbers.tolist()) == list(range(n))
    assert order(np.arange(n // 2, n)).tolist() == numbers[n // 2 :].tolist()


def test_a_shuffle_is_random():
    """Every number is as likely at every position, and neighbours are strangers."""
    n, n_orders = 20, 4_000
    counts = np.zeros((n, n))
    pairs = 0
    for seed in range(n_orders):
        numbers = IndexShuffle(n, seed, 0)(np.arange(n))
        counts[np.arange(n), numbers] += 1
        pairs += int((np.diff(numbers) == 1).sum())
    chi_square = ((counts - n_orders / n) ** 2 / (n_orders / n)).sum()
    assert chi_square < 361 + 5 * np.sqrt(2 * 361)  # 19 x 19 degrees of freedom
    expected = n_orders * (n - 1) / n
    assert abs(pairs - expected) < 5 * np.sqrt(expected)
    assert not np.array_equal(IndexShuffle(n, 0, 0)(np.arange(n)), IndexShuffle(n, 0, 1)(np.arange(n)))


@pytest.fixture(scope="module")
def rows():
    return random_rows(1_000, 8, 3, "float16", seed=0)


@pytest.fixture(scope="module")
def split(rows, tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("many"), rows, [10] * 100, rows_per_shard=70)


def test_the_order_does_not_depend_on_the_shards(split, rows, tmp_path):
    one = write_cache(tmp_path / "one", rows, [10] * 100, rows_per_shard=10_000)
    for a, b in zip(
        ActivationReader(split, 64, seed=3).epoch(5), ActivationReader(one, 64, seed=3).epoch(5), strict=True
    ):
        torch.testing.assert_close(a.acts_BD, b.acts_BD, rtol=0, atol=0)
        torch.testing.assert_close(a.labels_BC, b.labels_BC, rtol=0, atol=0)


def test_batches_hold_the_rows_they_name(split, rows):
    batches = list(ActivationReader(split, 64, seed=3).epoch(0))
    assert len(batches) == 1_000 // 64
    for batch in batches:
        np.testing.assert_array_equal(batch.acts_BD.numpy(), rows.acts[batch.rows_B])
        np.testing.assert_array_equal(batch.labels_BC.numpy(), rows.label[batch.rows_B])
    seen = np.concatenate([batch.rows_B for batch in batches])
    assert len(set(seen.tolist())) == len(seen)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_each_step_without_overlap(split, world_size):
    whole = list(ActivationReader(split, 60, seed=1).epoch(2))
    parts = [
        list(ActivationReader(split, 60 // world_size, seed=1, rank=rank, world_size=world_size).epoch(2))
        for rank in range(world_size)
    ]
    for step, batch in enumerate(whole):
        own = [set(part[step].rows_B.tolist()) for part in parts]
        assert sum(map(len, own)) == 60
        assert set.union(*own) == set(batch.rows_B.tolist())


def test_reading_is_taken_up_at_any_step(split):
    reader = ActivationReader(split, 64, seed=3)
    whole = [batch.rows_B.tolist() for batch in reader.epoch(1)]
    for first in (0, 1, 7, len(whole) - 1, len(whole)):
        assert [batch.rows_B.tolist() for batch in reader.epoch(1, first)] == whole[first:]


def test_a_reader_that_is_left_early_stops_its_threads(split):
    import threading

    before = threading.active_count()
    for _ in ActivationReader(split, 8, seed=0).epoch(0):
        break
    assert threading.active_count() <= before + 1
