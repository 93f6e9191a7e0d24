"""Write run configs of SAEs for Gemma-2 models, one for each block, factor and k."""

from collections.abc import Sequence
from pathlib import Path

from utils.cli import run
from utils.gen_config import generate

MODELS = ("gemma2", "gemma2_2b")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the files."""
    for path in generate(Path(__file__).parent / "SAE_config", MODELS, __doc__ or "", argv):
        print(path)


if __name__ == "__main__":
    run(main)
