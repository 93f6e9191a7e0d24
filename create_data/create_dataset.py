"""Make a labelled text data set: texts and the character spans that carry each concept."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from create_data import combi, csd, pii_300k, pii_synth, rtp, sp, wiki
from utils.cli import Parser, run, seed
from utils.errors import UserError
from utils.labelled_text import LabelledText, load_labelled_text

Builder = Callable[[Path | None, int], LabelledText]

DATASETS: dict[str, Builder] = {
    "PII_synth": lambda source, seed: _without_source("PII_synth", source, pii_synth.build(seed)),
    "SP": lambda source, seed: sp.build(source),
    "RTP": lambda source, seed: rtp.build("RTP", source, seed),
    "RTP_split": lambda source, seed: rtp.build("RTP_split", source, seed),
    "PII_300k": lambda source, seed: pii_300k.build("PII_300k", source),
    "PII_300k_mult_lang": lambda source, seed: pii_300k.build("PII_300k_mult_lang", source),
    "Wiki": lambda source, seed: wiki.build("Wiki", source, seed),
    "Wiki_small": lambda source, seed: wiki.build("Wiki_small", source, seed),
    "CSD": csd.build,
    "Combi_SP-tox_111": lambda source, seed: combi.build("Combi_SP-tox_111", source, seed),
    "Combi_SP-tox_211": lambda source, seed: combi.build("Combi_SP-tox_211", source, seed),
}

EXAMPLES = """\
examples:
  python create_data/create_dataset.py PII_synth                 # generated here, needs no network
  python create_data/create_dataset.py SP --source FOLDER        # train/valid/test.{original,modern}.nltktok
  python create_data/create_dataset.py RTP --source rtp.jsonl    # the original records, one per line (or .parquet)
  python create_data/create_dataset.py Wiki_small                # from the hub
  python create_data/create_dataset.py Combi_SP-tox_211 --source FOLDER   # with SP/, RTP/ and Wiki/ in it

Sizes of Combi_SP-tox_abc: any three digits, for texts of SP : RTP : Wiki. Texts that occur more than once are kept as
they are and counted; with --conflicts drop, those that occur with different labels are left out.
"""


def _without_source(name: str, source: Path | None, data: LabelledText) -> LabelledText:
    if source is not None:
        raise UserError(f"--source: {name} is generated and takes none")
    return data


def find_builder(name: str) -> Builder | None:
    """Return what builds a data set; None for a name that is not ours."""
    if name not in DATASETS and combi.is_combi(name):
        return lambda source, seed: combi.build(name, source, seed)
    return DATASETS.get(name)


def check_name(name: str, folder: Path) -> None:
    """Raise UserError for a data set that can neither be built nor lies in `folder` already."""
    if find_builder(name) is None and not (folder / name).is_dir():
        raise UserError(
            f"unknown data set {name!r}: choose one of {', '.join(DATASETS)}, or store your own in {folder}"
        )


def ensure_text(
    name: str, folder: Path, source: Path | None, seed: int, *, drop_conflicts: bool = False, any_seed: bool = False
) -> LabelledText:
    """Return the data set in `folder / name`, building it first where it is missing.

    A data set of your own, written there with `LabelledText.save`, is taken as it is; with `any_seed` so is every one.

    Raises:
        UserError: an unknown name, a bad source, or data of other settings in the folder.
    """
    target = folder / name
    if source is None and target.is_dir() and not drop_conflicts:
        data = load_labelled_text(target)
        if not any_seed and data.settings.get("seed", seed) != seed:
            raise UserError(
                f"{target} was made with --seed {data.settings['seed']}, not {seed}; remove it or change --seed"
            )
        return data
    check_name(name, folder)
    if source is not None and not source.exists():
        raise UserError(f"--source {source}: no such file or folder")
    builder = find_builder(name)
    if builder is None:
        raise UserError(f"--source: {name} is your own data set in {folder} and takes none")
    data = builder(source, seed)
    if drop_conflicts:
        data = data.without_conflicts()
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
    parser.add_argument(
        "--conflicts", choices=("keep", "drop"), default="keep", help="texts that occur with different labels"
    )
    args = parser.parse_args(argv)

    start = time.perf_counter()
    data = ensure_text(args.name, args.out, args.source, args.seed, drop_conflicts=args.conflicts == "drop")
    for split, texts in data.splits.items():
        n_labelled = sum(bool(text.spans) for text in texts)
        print(f"{split}: {len(texts):,} texts, {n_labelled:,} with a label, {len(data.concepts)} concept(s)")
    for reason, count in data.manifest()["counts"].items():
        print(f"{reason.replace('_', ' ')}: {count:,}")
    print(f"{args.out / args.name} is ready after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    run(main)
