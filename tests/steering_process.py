"""A script in a process of its own, for tests that kill it.

python -m tests.steering_process: reads a line of JSON {"script": module, "argv": [...]}, forks a process that runs it,
tells the process's number, and its exit status when it has ended; and so on with the next line.
"""

import importlib
import json
import os
import sys

import torch

from eval import Steering_SP, WinRate  # noqa: F401 - before the fork
from utils import cli


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            cli.run(importlib.import_module(job["script"]).main, job["argv"])
        _tell(child)
        _tell(os.waitpid(child, 0)[1])


def _tell(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
