"""Which of several processes is this? torchrun and Determined start several that share a job.

Both launchers tell each process its number by environment variables and stop all of them when one fails.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed as dist

from utils.errors import UserError


def rank() -> int:
    """Return this process's number, 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine, which chooses its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def any_process(value: bool, device: torch.device) -> bool:
    """Tell whether a value is true in any of the processes; all of them must ask."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    flag = torch.tensor(int(value), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def same_in_all_processes(value: int, device: torch.device) -> bool:
    """Tell whether all processes have the same number; all of them must ask."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    extremes = torch.tensor([value, -value], device=device)
    dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return bool(extremes.sum() == 0)


@contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes, where there are any, for the duration of the block; a group that is there serves.

    Raises:
        UserError: more processes on this machine than GPUs.
    """
    if world_size() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            n = torch.cuda.device_count()
            raise UserError(f"more processes than the {n} GPU(s) of this machine; use --nproc-per-node {n}")
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
