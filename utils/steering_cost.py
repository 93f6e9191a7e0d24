"""What steering costs: seconds for 1,000 tokens, and memory beyond the language model's own."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch.profiler import ProfilerActivity, profile

from utils.generation import Prompt, complete
from utils.latent_steerer import LatentSteerer
from utils.rivals.vectors import VectorSteerer
from utils.steerers import Steerer

_MEMORY_TOKENS = 4  # what is allocated for them grows with their number, but the peak is in the prompts


def cost(
    model: Any,
    tokenizer: Any,
    steerer: Steerer,
    strength: float,
    prompts: Sequence[Prompt],
    *,
    n_tokens: int = 32,
    rounds: int = 2,
) -> dict[str, float]:
    """Measure one batch, steered and plain (strength 0) in turn.

    Args:
        model: what the steerer steers.
        tokenizer: its tokenizer.
        steerer: steers.
        strength: of all rows.
        prompts: the batch.
        n_tokens: each row writes so many; none ends earlier.
        rounds: after the short ones that memory is measured in; medians are returned.

    Returns:
        `seconds_per_1000_tokens`; `times_plain`, the ratio to plain generation; `extra_megabytes`: what the steerer
        holds (the SAE's weights, vectors), and by how much the peak of allocated tensors is above plain generation's.
    """
    ends, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        works = [partial(complete, model, tokenizer, prompts, [own] * len(prompts), steerer) for own in (0.0, strength)]
        peaks = [allocated_peak(partial(work, _MEMORY_TOKENS)) for work in works]  # this warms up, too
        seconds = np.array([[_seconds(partial(work, n_tokens)) for work in works] for _ in range(rounds)])
    finally:
        model.generation_config.eos_token_id = ends
    return {
        "seconds_per_1000_tokens": float(np.median(seconds[:, 1])) / (len(prompts) * n_tokens) * 1000,
        "times_plain": float(np.median(seconds[:, 1] / seconds[:, 0])),
        "extra_megabytes": (held_bytes(model, steerer) + peaks[1] - peaks[0]) / 1e6,
    }


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def held_bytes(model: Any, steerer: Steerer) -> int:
    """Return the size of the tensors that a steerer needs beside the language model."""
    if isinstance(steerer, LatentSteerer):
        return sum(tensor.nbytes for tensor in model.sae.state_dict().values())
    return steerer.vectors_LD.nbytes if isinstance(steerer, VectorSteerer) else 0


def allocated_peak(work: Callable[[], object]) -> int:
    """Return the largest size, in bytes, of the tensors that were allocated by some work and alive at the same time.

    Counted by PyTorch's profiler, so it is the same in every run; what was there before does not count.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # read when it starts; it would tell that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    total, peak = 0, 0
    for _, change in sorted(changes, key=lambda own: own[0]):
        total += change
        peak = max(peak, total)
    return peak
