"""What `make demo` costs: its time, its peak memory, and how long SmolLM2 takes to load once it is converted."""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModel, AutoTokenizer, LlamaModel  # noqa: F401 - imported before the clock starts

from utils.cli import Parser, run
from utils.models import default_device, find_model, load_model, load_tokenizer

ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = Parser(__doc__ or "")
    parser.add_argument("--out", type=Path, help="keep the demo's data and results in this folder, which must be new")
    args = parser.parse_args(argv)
    find_model("smollm2")  # fetched and converted before the clock starts
    start = time.perf_counter()
    source = find_model("smollm2")
    load_tokenizer(source)
    load_model(source, n_blocks=30, device=default_device())
    print(f"SmolLM2 loaded in {time.perf_counter() - start:.2f} s, checksums included, imports not (at most 5 s)")
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(args.out or temporary)
        for run_name in ("first", "second"):
            start = time.perf_counter()
            subprocess.run([sys.executable, str(ROOT / "eval/demo.py"), "--out", folder], check=True)
            seconds = time.perf_counter() - start
            peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
            print(f"{run_name} demo: {seconds / 60:.1f} min (at most 12), peak memory {peak_gb:.1f} GB (at most 8)")


if __name__ == "__main__":
    run(main)
