"""Make a labelled text data set: texts and the character spans that carry each concept."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from create_data import pii_synth, rtp, sp
from utils.cli import Parser, run, seed
from utils.errors import UserError
from utils.labelled_text import LabelledText, load_labelled_text

Builder = Callable[[Path | None, int], LabelledText]

DATASETS: dict[str, Builder] = {
    "PII_synth": lambda source, seed: _without_source("PII_synth", source, pii_synth.build(seed)),
    "SP": lambda source, seed: sp.build(source),
    "RTP": lambda source, seed: rtp.build("RTP", source, seed),
    "RTP_split": lambda source, seed: rtp.build("RTP_split", source, seed),
}

EXAMPLES = """\
examples:
  python create_data/create_dataset.py PII_synth                 # generated here, needs no network
  python create_data/create_dataset.py SP --source FOLDER        # train/valid/test.{original,modern}.nltktok
  python create_data/create_dataset.py RTP --source rtp.jsonl    # the original records, one per line
"""


def _without_source(name: str, source: Path | None, data: LabelledText) -> LabelledText:
    if source is not None:
        raise UserError(f"--source: {name} is generated and takes none")
    return data


def check_name(name: str, folder: Path) -> None:
    """Raise UserError for a data set that can neither be built nor lies in `folder` already."""
    if name not in DATASETS and not (folder / name).is_dir():
        raise UserError(
            f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}, or store your own in {folder}"
        )


def ensure_text(name: str, folder: Path, source: Path | None, seed: int) -> LabelledText:
    """Return the data set in `folder / name`, building it first where it is missing.

    A data set of your own, written there with `LabelledText.save`, is taken as it is.

    Raises:
        UserError: an unknown name, a bad source, or data of other settings in the folder.
    """
    target = folder / name
    if source is None and target.is_dir():
        data = load_labelled_text(target)
        if data.settings.get("seed", seed) != seed:
            raise UserError(
                f"{target} was made with --seed {data.settings['seed']}, not {seed}; remove it or change --seed"
            )
        return data
    check_name(name, folder)
    if source is not None and not source.exists():
        raise UserError(f"--source {source}: no such file or folder")
    if name not in DATASETS:
        raise UserError(f"--source: {name} is your own data set in {folder} and takes none")
    data = DATASETS[name](source, seed)
    data.save(target)
    return data


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and make one data set."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(DATASETS)}")
    parser.add_argument(
        "--source", type=Path, help="local file or folder in the original schema, instead of a download"
    )
    parser.add_argument("--out", type=Path, default=Path("datasets_v2/text"), help="folder for the data sets")
    parser.add_argument("--seed", type=seed, default=0, help="for generated values and train/test splits")
    args = parser.parse_args(argv)

    start = time.perf_counter()
    data = ensure_text(args.name, args.out, args.source, args.seed)
    for split, texts in data.splits.items():
        n_labelled = sum(bool(text.spans) for text in texts)
        print(f"{split}: {len(texts):,} texts, {n_labelled:,} with a label, {len(data.concepts)} concept(s)")
    for reason, count in data.manifest()["counts"].items():
        print(f"{reason.replace('_', ' ')}: {count:,}")
    print(f"{args.out / args.name} is ready after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
