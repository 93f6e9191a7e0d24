"""What a training run writes beside its checkpoint: curves as CSV, for TensorBoard, and as a figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from torch.utils.tensorboard import SummaryWriter

from utils.atomic import atomic_file

matplotlib.use("Agg")  # no screen is needed to write a file
from matplotlib.figure import Figure

STEPS, HISTORY, CONCEPTS, CURVES = "steps.csv", "history.csv", "concepts.csv", "curves.png"


class RunLog:
    """The logs of one run that goes on after its first `steps` steps; what was logged of later ones is dropped.

    `steps.csv` has a row per window of steps, `history.csv` one per epoch, `concepts.csv` one per epoch, split and
    concept; the folder `tensorboard/` holds the same curves.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        _keep_steps(folder / STEPS, steps)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps + 1)

    def window(self, row: dict[str, Any]) -> None:
        """Add the means over some steps; the row begins with the last of them, `step`."""
        path = self.folder / STEPS
        pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)
        self._add("train", row["step"], {key: value for key, value in row.items() if key not in ("step", "epoch")})

    def epoch(self, step: int, values: dict[str, float], split: str, concepts: Iterable[dict[str, Any]]) -> None:
        """Add an epoch's evaluation to TensorBoard."""
        self._add(split, step, values)
        for row in concepts:
            self._add(
                f"{split}_concepts/{row['concept']}", step, {key: row[key] for key in ("bce", "auroc", "accuracy")}
            )

    def _add(self, prefix: str, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(f"{prefix}/{key}", value, step)
        self._writer.flush()

    def finish(self, history: list[dict[str, Any]], concepts: list[dict[str, Any]]) -> None:
        """Write the tables of the epochs and the figure."""
        self._writer.close()
        _write(self.folder / HISTORY, pd.DataFrame(history))
        if concepts:
            _write(self.folder / CONCEPTS, pd.DataFrame(concepts))
        figure = _draw(pd.read_csv(self.folder / STEPS), pd.DataFrame(history), pd.DataFrame(concepts))
        with atomic_file(self.folder / CURVES) as temporary:
            figure.savefig(temporary, dpi=120)


def _keep_steps(path: Path, steps: int) -> None:
    """Drop the rows of later steps, and one that a kill has torn."""
    if not path.exists():
        return
    header, *rows = path.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
    whole = [row for row in rows if row.endswith("\n") and row.count(",") == header.count(",")]
    kept = [row for row in whole if int(row.split(",")[0]) <= steps]
    if not kept:
        path.unlink()
        return
    with atomic_file(path) as temporary:
        temporary.write_text(header + "".join(kept), encoding="utf-8")


def _write(path: Path, table: pd.DataFrame) -> None:
    with atomic_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _draw(steps: pd.DataFrame, history: pd.DataFrame, concepts: pd.DataFrame) -> Figure:
    panels = {
        "reconstruction_loss": "reconstruction loss",
        "concept_loss": "concept loss (BCE)",
        "fvu": "fraction of variance unexplained",
        "dead_latents": "share of latents no token activates",
        "grad_norm": "gradient norm",
    }
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 3).flatten()
    for axis, (key, title) in zip(axes, panels.items(), strict=False):
        axis.plot(steps["step"], steps[key], label="train", linewidth=1)
        for column in [str(name) for name in history if str(name).endswith(f"_{key}")]:
            axis.plot(history["step"], history[column], marker=".", label=column.removesuffix(f"_{key}"))
        axis.set(title=title, xlabel="step")
        axis.legend()
    if len(concepts):
        for (split, concept), rows in concepts.groupby(["split", "concept"], sort=False):
            if split != "train":
                axes[-1].plot(rows["step"], rows["auroc"], marker=".", label=str(concept))
        axes[-1].set(title="AUROC of the concepts' latents", xlabel="step", ylim=(0, 1))
        if 0 < len(axes[-1].lines) <= 10:
            axes[-1].legend()
    return figure
