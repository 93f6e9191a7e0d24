"""A vanilla and a guided SAE for a data set by the shipped config, made where they are not there yet."""

from collections.abc import Sequence
from pathlib import Path

from create_data import act_dataset
from train import sp_classifier, train_SAE
from utils.activation_store import cache_name
from utils.atomic import write_json
from utils.errors import UserError
from utils.train_config import load_train_config

CONFIGS = Path(__file__).parents[1] / "llama3_SAE" / "SAE_config"
MODEL, BLOCK, SITE = "smollm2", 15, "block"
MAX_TEXTS = {"SP": 4000, "RTP": 4000, "RTP_split": 4000, "PII_synth": 1000}


def chosen(datasets: list[str], known: Sequence[str]) -> list[str]:
    """Return the data sets asked for, each once; `PII_synth` where none is, as that is made here.

    Raises:
        UserError: an unknown one.
    """
    if unknown := [name for name in datasets if name not in known]:
        raise UserError(f"{unknown[0]}: no such data set here; choose of {', '.join(known)}")
    return list(dict.fromkeys(datasets)) or ["PII_synth"]


def sources(given: list[str], datasets: list[str]) -> dict[str, str]:
    """Parse what --source says, DATASET=PATH each.

    Raises:
        UserError: not of that form, or none of the data sets.
    """
    found = {}
    for text in given:
        name, _, path = text.partition("=")
        if name not in datasets or not path:
            raise UserError(f"--source {text}: must be DATASET=PATH, with one of {', '.join(datasets)}")
        found[name] = path
    return found


def shipped_config(dataset: str) -> Path:
    """Return the shipped run config for SmolLM2 and a data set."""
    if dataset == "RTP_split":
        dataset = "RTP"  # the same training, on prompts
    return CONFIGS / f"{MODEL}-l1728-b{BLOCK}-k144-{dataset}.json"


def cache(dataset: str, source: str | None = None, *, data: Path | None = None, max_texts: int | None = None) -> None:
    """Cache the activations of a data set.

    Args:
        dataset: `SP`, `RTP` or `PII_synth`.
        source: where its texts come from, as in create_dataset.py.
        data: the folder for texts and activations.
        max_texts: for each split.
    """
    argv = [dataset, str(BLOCK), MODEL, SITE, "--max-texts", str(max_texts or MAX_TEXTS[dataset])]
    act_dataset.main([*argv, *(["--source", source] if source else []), *(["--out", str(data)] if data else [])])


def config_for(config: Path, dataset: str, data: Path, folder: Path) -> Path:
    """Write a shipped config anew, pointed at activations in another folder than the usual one; return its path."""
    values = load_train_config(config).to_dict() | {"ds_path": str(data / cache_name(MODEL, dataset, BLOCK, SITE))}
    del values["ckpt_path"]
    write_json(folder / config.name, values)
    return folder / config.name


def train_pair(config: Path, seed: int, out: Path, *more: str) -> list[str]:
    """Train a vanilla and a guided SAE; return their checkpoints, in this order.

    Args:
        config: of both.
        seed: likewise.
        out: the folder for the checkpoints.
        more: options of train_SAE.py.
    """
    for scaling in ("0", "1"):
        train_SAE.main([str(config), "--cond-loss-scaling", scaling, "--seed", str(seed), "--out", str(out), *more])
    return [str(out / f"{config.stem}_s{scaling}") for scaling in ("0", "1")]


def style_classifier(source: str | None) -> None:
    """Train the scorer of Shakespearean style."""
    sp_classifier.main(["--source", source] if source else [])
