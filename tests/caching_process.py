"""Caches in a process of its own, for tests that kill it, fill its disk or run it twice at a time.

python -m tests.caching_process TEXT_FOLDER MODEL_FOLDER OUT [FILL_AFTER]: after so many shards, fill the disk of OUT.
python -m tests.caching_process TEXT_FOLDER MODEL_FOLDER: for each OUT that it reads, fork a process that caches at
once, print the process's number, and its exit status when it has ended.
"""

import os
import sys
import traceback
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, LlamaModel, PreTrainedTokenizerFast  # noqa: F401 - before the fork

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
    text, model, *more = argv or sys.argv[1:]
    if not more:
        _serve((text, model))
        return
    out, *fill_after = more
    if fill_after:
        _fill_disk_after(int(fill_after[0]), Path(out))
    make_cache((text, model), out)


def _serve(paths) -> None:
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            try:
                make_cache(paths, line.rstrip("\n"))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        print(process, flush=True)  # noqa: T201 - the test reads it
        print(os.waitpid(process, 0)[1], flush=True)  # noqa: T201


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
