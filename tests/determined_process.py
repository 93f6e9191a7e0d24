"""One of two processes of a Determined trial off the cluster: CONFIG.json GROUP_FILE RANK."""

import sys
from typing import Any

import torch
from determined import core
from torch import distributed as dist

from train import determined_trial
from utils import cli


class GroupContext(core.DistributedContext):
    """The processes of a group, which talk through it; Determined's own would listen to the whole network."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = self.local_rank = rank
        self.size = self.local_size = size
        self.cross_rank, self.cross_size = 0, 1
        self._is_chief = self._is_local_chief = rank == 0

    def close(self) -> None:
        pass

    def allgather(self, stuff: Any) -> list[Any]:
        everything: list[Any] = [None] * self.size
        dist.all_gather_object(everything, stuff)
        return everything

    def gather(self, stuff: Any) -> list[Any] | None:
        everything = self.allgather(stuff)
        return everything if self.rank == 0 else None

    def broadcast(self, stuff: Any) -> Any:
        return self.allgather(stuff)[0]

    allgather_local, gather_local = allgather, gather

    def broadcast_local(self, stuff: Any = None) -> Any:
        return self.broadcast(stuff)


def main(argv: Any = None) -> None:
    config_path, group, rank = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{group}", rank=int(rank), world_size=2)
    hparams = {"config_path": config_path, "cond_loss_scaling": 1}
    determined_trial.train(hparams, distributed=GroupContext(int(rank), 2))


if __name__ == "__main__":
    import os

    os.environ["USE_TORCH_DISTRIBUTED"] = "True"  # what torchrun off a cluster needs
    cli.run(main)
