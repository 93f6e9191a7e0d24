"""Which of several processes is this? torchrun and Determined start several that share a job.

Both launchers tell each process its number by environment variables and stop all of them when one fails.
"""

import os


def rank() -> int:
    """Return this process's number, 0 where there is only one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return this process's number on its machine, which chooses its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))
