"""Training in processes of its own, for tests that stop it.

For each line `CONFIG.json OUT RANK WORLD_SIZE` that it reads, fork a process that trains at once, print the process's
number, and its exit status when it has ended. Processes of one run meet in the file `OUT.group`.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import torch
from torch import distributed as dist

from utils import cli, training
from utils.activation_cache import ActivationCache
from utils.sae import SAE, SAEConfig
from utils.train_config import SAE_Train_config
from utils.training import train


def main() -> None:
    torch.set_num_threads(1)
    sae = SAE(SAEConfig(8, 64, 2))  # loads what is compiled, once for all
    sae.training_forward(torch.randn(3, 8)).reconstruction_BD.sum().backward()
    setattr(training, "_SECONDS_BETWEEN_SAVES", -1)  # noqa: B010 - for mypy
    setattr(training, "_SHARE_OF_SAVING", 1e9)  # noqa: B010
    print("ready", flush=True)  # noqa: T201 - the test reads it
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _train(*line.split())
        print(process, flush=True)  # noqa: T201 - the test reads it


def _train(config_path: str, out: str, rank: str, world_size: str) -> None:
    os.environ |= {"RANK": rank, "WORLD_SIZE": world_size, "GLOO_SOCKET_IFNAME": "lo"}
    config = SAE_Train_config(**json.loads(Path(config_path).read_text()))

    def work(_: object) -> None:
        if world_size != "1":
            dist.init_process_group("gloo", f"file://{out}.group", rank=int(rank), world_size=int(world_size))
        train(config, ActivationCache(config.ds_path), Path(out))

    code: object = 1
    try:
        cli.run(work)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        Path(f"{out}.exit{rank}").write_text(str(code))
        os._exit(0)


if __name__ == "__main__":
    main()
