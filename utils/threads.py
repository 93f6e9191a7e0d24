"""Compiled loops, which hold no lock, shared among threads: as many as PyTorch uses."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch


def equal_parts(n: int) -> list[int]:
    """Return where 0 to n is cut into as many equal parts as there are threads, the ends included."""
    return np.linspace(0, n, torch.get_num_threads() + 1).astype(int).tolist()


def in_threads(kernel: Callable[..., Any], parts: Sequence[int], *arrays: Any) -> list[Any]:
    """Call a kernel on parts[i] to parts[i + 1] in thread i; return what it returns, without that of empty parts."""
    ranges = [(start, end) for start, end in pairwise(parts) if start < end]
    if len(ranges) > 1:
        return list(_threads(os.getpid(), len(ranges)).map(lambda ends: kernel(*arrays, *ends), ranges))
    return [kernel(*arrays, start, end) for start, end in ranges]


@cache
def _threads(_process: int, n: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n)  # of this process: a fork has no threads
