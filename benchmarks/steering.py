"""The claims: steering costs next to nothing beside generation, and a sweep of strengths in one batch saves most of it.

SmolLM2 and an SAE of 1,728 latents at block 15; prompts are made-up texts without their last ten tokens. All that is
compared is timed in turn, round after round, in one process.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from create_data.pii_synth import build
from llama3_SAE import LLama3_SAE
from utils.cli import Parser, positive_int, run
from utils.generation import CompletionLog, Prompt, complete, sweep
from utils.latent_steerer import LatentSteerer
from utils.models import default_device, find_model, load_tokenizer
from utils.rivals.icv import ICV
from utils.rivals.model_arithmetic import ModelArithmetic
from utils.rivals.preadd import PreAdd
from utils.sae import SAE, SAEConfig
from utils.steerers import Steerer
from utils.steering_sweep import make_prompts

BLOCK, N_LATENTS, K = 15, 1728, 144
N_TOKENS = 32
PREFIX = "The following text gives away names, addresses, telephone numbers and other personal data."
ROWS = 8
ALPHAS = np.linspace(-1, 1, 11).round(3).tolist()
EXAMPLES = """\
example:
  python benchmarks/steering.py --rounds 1
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, do the work and print a Markdown table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--prompts", type=positive_int, default=16, help="of the sweep; a multiple of 8")
    args = parser.parse_args(argv)
    source, data = find_model("smollm2"), build(0)
    tokenizer = load_tokenizer(source)
    torch.manual_seed(0)
    sae = SAE(SAEConfig(576, N_LATENTS, K, activation="topk-sigmoid"))
    model = LLama3_SAE.attach(source.folder, sae, BLOCK).to(default_device())
    prompts = make_prompts(data, "test", tokenizer, args.prompts, 0, 10)
    print(f"{torch.get_num_threads()} threads, {default_device()}, {N_TOKENS} new tokens a prompt\n")
    print("| what | tok/s | against | ratio |\n|---|---|---|---|")
    _measure_steering(model, tokenizer, prompts[:ROWS], args.rounds)
    _measure_rivals(model, tokenizer, prompts[:ROWS], args.rounds)
    _measure_sweep(model, tokenizer, prompts, args.rounds)


def _measure_steering(model: Any, tokenizer: Any, prompts: list[Prompt], rounds: int) -> None:
    """Time one batch of 8, with every row at its full length, plain and steered."""
    model.generation_config.eos_token_id = None  # all write as much

    def steered(latents: Sequence[int], beta: str) -> None:
        complete(model, tokenizer, prompts, [-0.3] * len(prompts), LatentSteerer(tuple(latents), beta), N_TOKENS)

    works = {
        "plain `generate`": lambda: steered((), "constant"),
        "constant, one latent": lambda: steered([0], "constant"),
        "active, 25 latents": lambda: steered(range(25), "active"),
        "balanced, 25 latents": lambda: steered(range(25), "balanced"),
    }
    times = _interleaved(works, rounds)
    plain = times["plain `generate`"]
    for name, own in times.items():
        ratio = float(np.median(np.divide(plain, own)))
        speed = len(prompts) * N_TOKENS / float(np.median(own))
        print(f"| {name}, batch of {len(prompts)} | {speed:.0f} | plain | **{ratio:.2f}** |")


def _measure_rivals(model: Any, tokenizer: Any, prompts: list[Prompt], rounds: int) -> None:
    """Time the rivals in the same way: the seconds of each over those of plain generation."""
    torch.manual_seed(0)
    vectors_LD = torch.randn(model.config.num_hidden_layers, model.config.hidden_size)
    steerers: dict[str, Steerer] = {
        "plain": LatentSteerer((), "constant"),
        "icv, or diffvec": ICV(vectors_LD, {}),
        "preadd": PreAdd(PREFIX, tokenizer),
        "model arithmetic, linear": ModelArithmetic(PREFIX, tokenizer),
        "model arithmetic, union": ModelArithmetic(PREFIX, tokenizer, union=True),
    }
    strengths = [-0.3] * len(prompts)
    works = {
        name: partial(complete, model, tokenizer, prompts, strengths, steerer, N_TOKENS)
        for name, steerer in steerers.items()
    }
    times = _interleaved(works, rounds)
    for name in list(steerers)[1:]:
        ratio = float(np.median(np.divide(times[name], times["plain"])))
        speed = len(prompts) * N_TOKENS / float(np.median(times[name]))
        print(f"| {name}, batch of {len(prompts)} | {speed:.0f} | seconds over plain | **{ratio:.2f}** |")


def _measure_sweep(model: Any, tokenizer: Any, prompts: list[Prompt], rounds: int) -> None:
    """Time a sweep of 11 strengths against 11 runs, one for each."""
    steering = LatentSteerer((0,), "constant")

    def together() -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = CompletionLog(Path(folder) / "log.jsonl")
            sweep(model, tokenizer, prompts, ALPHAS, steering, log=log, max_new_tokens=N_TOKENS, rows=64)

    def one_by_one() -> None:
        for alpha in ALPHAS:
            for start in range(0, len(prompts), ROWS):
                batch = prompts[start : start + ROWS]
                complete(model, tokenizer, batch, [alpha] * len(batch), steering, N_TOKENS)

    times = _interleaved({"together": together, "one by one": one_by_one}, rounds, warm_up=0)
    ratio = float(np.median(np.divide(times["one by one"], times["together"])))
    speeds = {name: len(prompts) * len(ALPHAS) * N_TOKENS / float(np.median(own)) for name, own in times.items()}
    against = f"11 runs in batches of 8, {speeds['one by one']:.0f} tok/s"
    print(f"| a sweep of 11 strengths, 64 rows a batch | {speeds['together']:.0f} | {against} | **{ratio:.2f}** |")


def _interleaved(works: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(warm_up + rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: own[warm_up:] for name, own in times.items()}


if __name__ == "__main__":
    run(main)
