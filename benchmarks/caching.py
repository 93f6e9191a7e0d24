"""Caching against its limits: the bare forward pass, the plain approach, memory, and the reader.

Every figure is a ratio of two things measured in the same run, on the same texts.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import load_from_disk
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig

from create_data.create_dataset import ensure_text
from utils.activation_cache import ActivationCache
from utils.activation_reader import ActivationReader
from utils.cache_plan import CachePlan, length_sorted_batches, plan_cache
from utils.caching import MAX_LENGTH, cache_activations
from utils.cli import Parser, positive_int, run
from utils.extraction import Extractor
from utils.hooks import site_module
from utils.labelled_text import LabelledText
from utils.models import ModelSource, default_device, find_model, load_config, load_tokenizer

EXAMPLES = """\
examples:
  python benchmarks/caching.py --source FOLDER_OF_SP
  python benchmarks/caching.py                        # generated texts instead, PII_synth
  python benchmarks/caching.py --llama8b              # on a GPU: random weights of Llama-3-8B's shape
"""
_MEMORY = """
import resource, sys
from pathlib import Path
from utils.caching import cache_activations
from utils.labelled_text import load_labelled_text
from utils.models import find_model
cache_activations(load_labelled_text(Path(sys.argv[1])), find_model("smollm2"), 3, "block", Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--source", type=Path, help="folder with SP's .nltktok files")
    parser.add_argument(
        "--texts", type=positive_int, default=2000, help="how many to cache at block 15; four times as many at block 3"
    )
    parser.add_argument("--llama8b", action="store_true", help="random weights of Llama-3-8B's shape, for a GPU")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        name = "SP" if args.source else "PII_synth"
        data = ensure_text(name, scratch / "text", args.source, 0)
        source = find_model("smollm2")
        if args.llama8b:
            source = _random_llama8b(source, scratch / "llama8b")
        for block, n_texts in ((15, args.texts), (3, 4 * args.texts)):  # about as long each
            _speed(_first_texts(data, n_texts), source, block, scratch / f"B{block}", plain=not args.llama8b)
        _memory(data, source, scratch)
        _reader(data, source, scratch)


def _first_texts(data: LabelledText, n_texts: int) -> LabelledText:
    return LabelledText(data.name, data.concepts, {"train": data.splits["train"][:n_texts]}, data.settings)


def _random_llama8b(smollm2: ModelSource, folder: Path) -> ModelSource:
    """Save the first 16 blocks of a Llama-3-8B with random weights, beside SmolLM2's tokenizer."""
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(default_device()):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    load_tokenizer(smollm2).save_pretrained(folder)
    return ModelSource("llama8b-random", folder, "random")


def _speed(data: LabelledText, source: ModelSource, block: int, out: Path, *, plain: bool) -> None:
    plan = plan_cache(data, load_tokenizer(source), max_texts=None, seed=0, max_length=MAX_LENGTH, most_rows=1_000_000)
    n_rows = sum(shard.n_rows for shard in plan.shards)
    start = time.perf_counter()
    load_config(source)
    load_tokenizer(source)
    extractor = Extractor.load(source, block, "block")
    loading = time.perf_counter() - start
    seconds = [_bare(plan, extractor), _bare(plan, extractor)]  # the first warms up
    start = time.perf_counter()
    cache_activations(data, source, block, "block", out)
    cached = n_rows / (time.perf_counter() - start - loading)
    seconds.append(_bare(plan, extractor))  # before and after, as a machine's speed drifts
    bare = n_rows / (sum(seconds[1:]) / 2)
    print(f"block {block}: {n_rows:,} tokens; bare forward pass {bare:,.0f} tok/s; cached {cached:,.0f} tok/s,", end="")
    print(f" ratio {cached / bare:.2f} (at least 0.90; 0.85 on a GPU), {loading:.1f} s of loading apart")
    if plain:
        per_second = _plain(data, source, block)
        print(f"block {block}: plain approach {per_second:,.0f} tok/s, ratio {cached / per_second:.1f}", end=" ")
        print(f"(at least {4 if block == 15 else 12})")


def _bare(plan: CachePlan, extractor: Extractor) -> float:
    """Time the forward passes to the hook alone, on the batches that caching uses."""
    seconds = 0.0
    for shard in plan.shards:
        texts = plan.tokenise(shard)
        batches = [[texts[i] for i in batch] for batch in length_sorted_batches(texts, extractor.batch_tokens)]
        start = time.perf_counter()
        for batch in batches:
            extractor.forward(batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds += time.perf_counter() - start
    return seconds


def _plain(data: LabelledText, source: ModelSource, block: int, n_texts: int = 150) -> float:
    """Do what a short script would: the whole model, texts in file order, a Python list for each token."""
    tokenizer = load_tokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    kept: list[list[float]] = []
    hook = site_module(model, block, "block").register_forward_hook(
        lambda _module, _inputs, output: taken.append(output[0] if isinstance(output, tuple) else output)
    )
    texts = [text.text for text in data.splits["train"][:n_texts]]
    start = time.perf_counter()
    for first in range(0, len(texts), 16):
        taken: list[torch.Tensor] = []
        encoded = tokenizer(texts[first : first + 16], return_tensors="pt", padding=True)
        with torch.no_grad():
            model(**encoded)
        for acts_TD, mask_T in zip(taken[0], encoded["attention_mask"], strict=True):
            for act_D, keep in zip(acts_TD, mask_T, strict=True):
                if keep:
                    kept.append(act_D.tolist())
    seconds = time.perf_counter() - start
    hook.remove()
    return len(kept) / seconds


def _memory(data: LabelledText, source: ModelSource, scratch: Path) -> None:
    """Peak memory of a process that caches 10,000 tokens, and of one that caches 100,000."""
    if source.name != "smollm2":
        return
    tokenizer = load_tokenizer(source)
    lengths = [len(ids) for ids in tokenizer([text.text for text in data.splits["train"]])["input_ids"]]
    peaks = []
    for n_tokens in (10_000, 100_000):
        part = _first_texts(data, int(np.searchsorted(np.cumsum(lengths), n_tokens)))
        part.save(scratch / f"text-{n_tokens}")
        command = [sys.executable, "-c", _MEMORY, str(scratch / f"text-{n_tokens}"), str(scratch / f"cache-{n_tokens}")]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) / 1e6)
    growth = peaks[1] / peaks[0] - 1
    print(f"peak memory {peaks[0]:.2f} GB for 10,000 tokens, {peaks[1]:.2f} GB for 100,000: {growth:+.1%} (below +10%)")


def _reader(data: LabelledText, source: ModelSource, scratch: Path) -> None:
    """Random batches of 2,048 rows: ours against `datasets`, from the page cache."""
    folder = next(iter(scratch.glob("cache-100000/*-B*")), None) or next(iter(scratch.glob("B3/*-B*")))
    split = ActivationCache(folder).split("train")
    batch_size = 2048
    reader = ActivationReader(split, batch_size, seed=0, device=default_device())

    def ours() -> int:
        n_rows = 0
        for epoch in range(max(1, 200 // len(reader))):
            for batch in reader.epoch(epoch):
                n_rows += len(batch.acts_BD)
        return n_rows

    rows = load_from_disk(folder)["train"].with_format("torch")
    random = np.random.default_rng(0)

    def by_index() -> int:
        return sum(len(rows[random.permutation(len(rows))[:batch_size]]["acts"]) for _ in range(4))

    def by_loader() -> int:
        return sum(len(batch["acts"]) for batch in itertools.islice(DataLoader(rows, batch_size, shuffle=True), 4))

    ours()  # into the page cache
    per_second = _rate(ours)
    gigabytes = per_second * split.take("acts", np.array([0])).nbytes / 1e9
    print(f"reader {per_second:,.0f} rows/s, {gigabytes:.2f} GB/s (at least 1)")
    for what, read in (("in a DataLoader", by_loader), ("indexed at random", by_index)):
        theirs = _rate(read)
        print(f"datasets {what} {theirs:,.0f} rows/s, ratio {per_second / theirs:,.0f} (at least 100)")


def _rate(read: Callable[[], int]) -> float:
    start = time.perf_counter()
    n_rows = read()
    return n_rows / (time.perf_counter() - start)


if __name__ == "__main__":
    run(main)
