"""Caches in a process of its own, for tests that kill it, fill its disk or run it twice at a time.

python -m tests.caching_process TEXT_FOLDER MODEL_FOLDER OUT [FILL_AFTER]: after so many shards, fill the disk of OUT.
"""

import sys
from pathlib import Path

import torch

from utils import cache_building, cli
from utils.caching import cache_activations
from utils.labelled_text import load_labelled_text
from utils.models import ModelSource

SHARD_BYTES = 64 * 40  # a row of the tiny models is 64 bytes, so about one text per shard


def make_cache(paths, out, **options) -> None:
    """Cache the data set and with the model that `paths` names."""
    text, model = paths
    torch.set_num_threads(1)
    source = ModelSource("tiny", Path(model), "test")
    data = load_labelled_text(Path(text))
    cache_activations(data, source, 1, "block", Path(out), shard_bytes=SHARD_BYTES, **options)


def main(argv=None) -> None:
    text, model, out, *fill_after = argv or sys.argv[1:]
    if fill_after:
        _fill_disk_after(int(fill_after[0]), Path(out))
    make_cache((text, model), out)


def _fill_disk_after(n_shards: int, out: Path) -> None:
    write, written = cache_building.write_shard, []

    def write_and_count(*args) -> None:
        written.append(args)
        if len(written) > n_shards:
            with (out / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(4096))
                except OSError:
                    pass  # the disk is full, as it should be
        write(*args)

    setattr(cache_building, "write_shard", write_and_count)  # noqa: B010 - for mypy


if __name__ == "__main__":
    cli.run(main)
