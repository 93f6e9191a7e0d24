"""Choose strengths and settings of all methods on the training split, by one rule, and write them to eval/rivals/."""

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from eval import Steering_PII, Steering_RTP, Steering_SP
from eval.steering_script import SteeringScript
from utils.atomic import write_json
from utils.cli import Parser, positive_int, run, seed
from utils.errors import UserError
from utils.models import default_device, find_model, load_language_model, load_tokenizer
from utils.rivals.preadd import PreAdd
from utils.rivals.states import make_pairs
from utils.rivals.tuned import (
    DIRECTIONS,
    FEWEST_WORDS,
    LITERATURE,
    MOST_NATS,
    MOST_REPETITION,
    choose,
    file_of,
    sweep_of,
)
from utils.sae_loading import load_sae
from utils.steering_candidates import DEFAULT_MODEL, FORMULAS, RIVALS, VECTORS
from utils.steering_report import TUNED

SCRIPTS: dict[str, SteeringScript] = {
    "SP": Steering_SP.SCRIPT,
    "RTP_split": Steering_RTP.SCRIPT,
    "PII_synth": Steering_PII.SCRIPT,
}
PAIRS = (50, 200)
_RULE = (
    f"the largest change of the effect, where the log-perplexity rises by at most {MOST_NATS} nats per token and the "
    f"repetition by at most {MOST_REPETITION}, and at least {FEWEST_WORDS:.0%} of the words are there"
)
_NOTE = "The settings in the paper's Appendix D were not available."
EXAMPLES = """\
examples:
  python eval/tune_rivals.py SP --source FOLDER --sae ckpt/smollm2-l1728-b15-k144-SP_s1
  python eval/tune_rivals.py PII_synth --method icv diffvec

Every method goes over a few strengths and settings on texts of the training split, never on those it is compared on; of
what keeps the language whole, the strongest is taken. All that was tried is written down beside the choice.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, sweep, choose, and write one file for each method."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("dataset", metavar="DATASET", choices=SCRIPTS, help=", ".join(SCRIPTS))
    parser.add_argument("--method", nargs="*", choices=RIVALS, default=list(RIVALS), metavar="METHOD")
    parser.add_argument("--sae", action="append", default=[], metavar="REF", help="tuned by the same rule")
    parser.add_argument("--source", help="where the texts come from, as in create_dataset.py")
    parser.add_argument("--split", default="train", help="never the one that is compared on")
    parser.add_argument("--max-texts", type=positive_int, default=24, help="prompts, chosen at random")
    parser.add_argument("--seed", type=seed, default=0, help="of all that is drawn")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="of the rivals")
    parser.add_argument("--model-path", help="local model folder")
    parser.add_argument("--scorer", help="as in the steering script")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder with texts and activations")
    parser.add_argument("--out", type=Path, help="folder for the sweeps (default: results/tuning-<DATASET>)")
    parser.add_argument("--tuned-settings", type=Path, default=TUNED, help="folder for what was chosen")
    args = parser.parse_args(argv)
    if args.split in ("test", "valid"):
        raise UserError(f"--split {args.split}: methods are compared there; tune on train")
    prefix = _best_prefix(args) if set(args.method) & set(FORMULAS) else ""
    for method in args.method:
        _tune(method, args, _variants(method, args.model, prefix))
    for ref in args.sae:
        kind = "g-sae" if load_sae(ref).is_guided else "sae"
        betas = SCRIPTS[args.dataset].experiment.betas
        _tune(kind, args, [({"beta": beta}, ["--sae", ref, "--method", beta]) for beta in betas])


def _variants(method: str, model: str, prefix: str) -> list[tuple[dict[str, Any], list[str]]]:
    """Return the settings a rival is tried with, and the options of each."""
    argv = ["--method", method, "--model", model]
    if method in VECTORS:
        return [({"pairs": pairs}, [*argv, "--pairs", str(pairs)]) for pairs in PAIRS]
    return [({"prefix": prefix}, [*argv, "--prefix", prefix])]


def _best_prefix(args: argparse.Namespace) -> str:
    """Return the prefix that makes texts with the concept likelier than others, on pairs of the training split."""
    script = SCRIPTS[args.dataset]
    data = script.texts(script.parse(_shared(args)))
    source = find_model(args.model, args.model_path)
    pairs = make_pairs(data.splits[args.split], data.concepts, min(PAIRS), args.seed)
    about = {"prefixes": script.experiment.prefixes}
    return PreAdd.fit(load_language_model(source, default_device()), load_tokenizer(source), pairs, about).prefix


def _tune(method: str, args: argparse.Namespace, variants: list[tuple[dict[str, Any], list[str]]]) -> None:
    script = SCRIPTS[args.dataset]
    effect, only_down = script.experiment.effect, max(script.experiment.alphas) <= 0
    strengths, signed = sweep_of(method, only_down=only_down), method != "sae"
    sweeps = []
    for number, (_, argv) in enumerate(variants):
        out = (args.out or Path("results") / f"tuning-{args.dataset}") / f"{method}-{number}"
        sweep = ["--alphas", *map(str, strengths), "--split", args.split, "--max-texts", str(args.max_texts)]
        sweeps.append(script.main([*_shared(args), *argv, *sweep, "--out", str(out)]))
    directions = {name: sign for name, sign in DIRECTIONS.items() if sign < 0 or not only_down}
    best = max(range(len(variants)), key=lambda number: _gained(sweeps[number], effect, directions.values(), signed))
    chosen = {name: choose(sweeps[best], effect, sign, signed=signed) for name, sign in directions.items()}
    path = file_of(args.tuned_settings, method, args.dataset)
    found = {
        "method": method,
        "dataset": args.dataset,
        "model": args.model,
        "options": variants[best][0],
        "strengths": strengths,
        "chosen": chosen,
        "literature": {"strength": LITERATURE.get(method), "note": _NOTE},
        "tuning": {
            "rule": _RULE,
            "split": args.split,
            "max_texts": args.max_texts,
            "seed": args.seed,
            "torch": version("torch"),
            "tried": [
                {"options": options, "sweep": _compact(sweep, effect)}
                for (options, _), sweep in zip(variants, sweeps, strict=True)
            ],
        },
    }
    write_json(path, found)
    print(f"{method} on {args.dataset}: {variants[best][0]}, {chosen}; written to {path}")


def _shared(args: argparse.Namespace) -> list[str]:
    argv = ["--dataset", args.dataset, "--data", str(args.data), "--seed", str(args.seed)]
    for name in ("source", "scorer", "model_path"):
        if value := getattr(args, name):
            argv += [f"--{name.replace('_', '-')}", str(value)]
    return argv + (["--transitions", "0"] if SCRIPTS[args.dataset].experiment.styles else [])


def _gained(sweep: pd.DataFrame, effect: str, signs: Any, signed: bool) -> float:
    """Return how far the effect can be changed within the limits, in all directions together."""
    values = sweep[sweep["measure"] == effect].set_index("alpha")["value"]
    strengths = [choose(sweep, effect, sign, signed=signed) for sign in signs]
    return float(sum(abs(values[strength] - values[0.0]) for strength in strengths if strength is not None))


def _compact(sweep: pd.DataFrame, effect: str) -> list[dict[str, float]]:
    columns = [effect, "log_perplexity", "repetition", "distinct_2", "n_words"]
    values = sweep.pivot_table(index="alpha", columns="measure", values="value").reindex(columns=columns)
    rows: list[dict[str, float]] = values.round(4).reset_index().to_dict("records")  # type: ignore[assignment]
    return rows


if __name__ == "__main__":
    run(main)
