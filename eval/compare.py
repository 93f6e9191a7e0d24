"""The paper's comparison in one command: G-SAE, SAE, ICV, DiffVec, PreAdd, Model Arithmetic, unsteered."""

import argparse
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from eval import recipe
from eval.steering_script import SteeringScript
from eval.tune_rivals import SCRIPTS
from utils.atomic import atomic_file
from utils.cli import Parser, positive_int, run, seed
from utils.comparison import NAMES, Contender, as_latex, as_markdown, compare, pareto, shown
from utils.errors import UserError
from utils.judges.options import JUDGE_HELP, add_judge_arguments, judge_of
from utils.labelled_text import LabelledText
from utils.models import default_device
from utils.results import Results, only_process
from utils.rivals.tuned import Tuned, load_tuned
from utils.sae_loading import load_sae
from utils.steering_candidates import DEFAULT_MODEL, RIVALS, Candidate
from utils.steering_cost import cost
from utils.steering_report import TUNED, report
from utils.steering_sweep import make_prompts
from utils.win_rate import TASKS, judge_pairs

TRAINED_ON = {"SP": "SP", "RTP_split": "RTP", "PII_synth": "PII_synth"}
WINS = {
    "SP": {"up": "sp", "down": "non-sp"},
    "RTP_split": {"down": "non-tox", "up": "tox"},
    "PII_synth": {"down": "pii"},
}
COST_ROWS = 8
EXAMPLES = f"""\
examples:
  python eval/compare.py                                         # PII_synth, all from scratch
  python eval/compare.py SP RTP_split PII_synth --source SP=FOLDER --source RTP_split=rtp.jsonl

Activations, SAEs and scorer are made by the shipped recipe where they are not there. Every method completes prompts of
the test split at the strengths in eval/rivals/, where eval/tune_rivals.py has chosen one on training texts, by one rule
for all. The table holds each at that one: effect, quality, win rates against the unsteered model and against G-SAE,
seconds and memory. An interrupted run goes on when the same command is given again.

{JUDGE_HELP}"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line, steer by every method, and write tables and figure; return the table."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("datasets", metavar="DATASET", nargs="*", help=f"{', '.join(SCRIPTS)} (default: PII_synth)")
    where = "where a data set's texts come from, as in create_dataset.py"
    parser.add_argument("--source", action="append", default=[], metavar="DATASET=PATH", help=where)
    sae = "a guided or a vanilla SAE in place of those of the shipped recipe, for one data set"
    parser.add_argument("--sae", action="append", default=[], metavar="REF", help=sae)
    parser.add_argument("--max-texts", type=positive_int, default=60, help="prompts, chosen at random")
    parser.add_argument("--seed", type=seed, default=0, help="of the SAEs, and of all that is drawn")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="of the rivals")
    parser.add_argument("--model-path", help="local model folder")
    parser.add_argument("--data", type=Path, default=Path("datasets_v2"), help="folder with texts and activations")
    parser.add_argument("--tuned-settings", type=Path, default=TUNED, help="what eval/tune_rivals.py chose")
    parser.add_argument("--out", type=Path, default=Path("results/compare"), help="folder for results")
    add_judge_arguments(parser)
    args = parser.parse_args(argv)
    datasets = recipe.chosen(args.datasets, list(SCRIPTS))
    if args.sae and len(datasets) > 1:
        raise UserError("--sae is for one data set; name one")
    sources = recipe.sources(args.source, datasets)
    parts = [_compare(dataset, args, sources.get(dataset)) for dataset in datasets]
    table = pd.concat([part for part, _ in parts], ignore_index=True)
    _write(args, table, dict(swept for _, swept in parts))
    return table


def _compare(
    dataset: str, args: argparse.Namespace, source: str | None
) -> tuple[pd.DataFrame, tuple[str, tuple[pd.DataFrame, str]]]:
    """Compare on one data set; return the rows, and the sweeps for the figure."""
    script = SCRIPTS[dataset]
    refs = args.sae or _trained(dataset, args, source)
    kinds = {"g-sae" if load_sae(ref).is_guided else "sae": ref for ref in refs}
    only_down = max(script.experiment.alphas) <= 0
    settings = {
        method: load_tuned(args.tuned_settings, method, dataset, args.model, only_down=only_down)
        for method in (*kinds, *RIVALS)
    }
    betas = {kind: settings[kind].options.get("beta", script.experiment.betas[0]) for kind in kinds}
    given = script.parse(_steering_argv(dataset, args, source, refs, sorted(set(betas.values()))))
    data = script.texts(given)
    compared = [own for own in script.compared(given, data) if own.method in RIVALS or own.method == betas[_kind(own)]]
    table, text = report(given, script.experiment, data, script.load_scorer(given.scorer, given), compared)
    print(text)
    costs = _costs(dataset, args, script, data, given, compared, settings)
    contenders = [Contender(_kind(own), own.label, settings[_kind(own)].chosen, costs[own.label]) for own in compared]
    contenders.sort(key=lambda own: list(NAMES).index(own.method))
    judge = judge_of(args, args.out)
    judging = None if judge is None else partial(judge_pairs, judge)
    rows = compare(table, contenders, WINS[dataset], given.out / "completions", judging, args.seed)
    names = {own.label: NAMES[own.method] for own in contenders}
    swept = table[table["label"].isin(names)].assign(label=table["label"].map(names))
    found = pd.DataFrame([{"dataset": dataset} | row for row in rows])
    return found, (dataset, (swept, script.experiment.effect))


def _kind(candidate: Candidate) -> str:
    """Return the key of `NAMES`."""
    return candidate.method if candidate.method in RIVALS else "g-sae" if candidate.guided else "sae"


def _trained(dataset: str, args: argparse.Namespace, source: str | None) -> list[str]:
    """Make what the shipped recipe makes: activations, both SAEs, and the scorer of style."""
    name = TRAINED_ON[dataset]
    recipe.cache(name, source, data=args.data)
    if dataset == "SP":
        recipe.style_classifier(source)
    out = Path("ckpt") / f"seed{args.seed}"
    config = recipe.config_for(recipe.shipped_config(name), name, args.data, args.out / "configs")
    return recipe.train_pair(config, args.seed, out)


def _steering_argv(
    dataset: str, args: argparse.Namespace, source: str | None, refs: list[str], betas: list[str]
) -> list[str]:
    argv = ["--dataset", dataset, "--data", str(args.data), "--seed", str(args.seed), "--tuned", "--model", args.model]
    argv += ["--tuned-settings", str(args.tuned_settings), "--max-texts", str(args.max_texts)]
    argv += ["--out", str(args.out / dataset), "--method", *betas, *RIVALS]
    argv += [word for ref in refs for word in ("--sae", ref)]
    argv += ["--source", source] if source else []
    argv += ["--model-path", args.model_path] if args.model_path else []
    return argv + (["--transitions", "0"] if SCRIPTS[dataset].experiment.styles else [])


def _costs(
    dataset: str,
    args: argparse.Namespace,
    script: SteeringScript,
    data: LabelledText,
    given: argparse.Namespace,
    compared: list[Candidate],
    settings: dict[str, Tuned],
) -> dict[str, dict[str, float]]:
    """Measure each method on one batch of prompts; what was measured before is not measured again."""
    where = {"device": str(default_device()), "threads": torch.get_num_threads(), "rows": COST_ROWS}
    folder = args.out / dataset
    with only_process(folder / "costs"):
        results = Results(folder / "costs", "costs", {"dataset": dataset} | where)
        for own in compared:
            strengths = [value for value in settings[_kind(own)].chosen.values() if value is not None]
            strength = strengths[0] if strengths else own.alphas[0]

            def measure(own: Candidate = own, strength: float = strength) -> list[dict[str, Any]]:
                model, tokenizer, steerer = own.load()
                split = given.split or next(name for name in ("test", "valid") if name in data.splits)
                prompts = make_prompts(data, split, tokenizer, COST_ROWS, args.seed, script.experiment.cut)
                return [cost(model, tokenizer, steerer, strength, prompts)]

            results.piece(own.label, own.made_of | {"strength": strength}, measure)
        table = pd.DataFrame([{"label": label} | row for label in results.labels for row in results.rows(label)])
        results.write(table, {}, {"torch": version("torch")})
        return {own.label: results.rows(own.label)[0] for own in compared}


def _write(args: argparse.Namespace, table: pd.DataFrame, swept: dict[str, tuple[pd.DataFrame, str]]) -> None:
    markdown, latex = [], []
    for (dataset, direction), own in table.groupby(["dataset", "direction"], sort=False):
        frame = shown(own, TASKS[WINS[str(dataset)][str(direction)]].effect)
        title = f"{dataset}, {direction}"
        markdown.append(as_markdown(frame, title))
        latex.append(as_latex(frame, title))
    settings = {"datasets": list(swept), "max_texts": args.max_texts, "seed": args.seed, "model": args.model}
    with only_process(args.out):
        for name, text in (("compare.md", "\n".join(markdown)), ("compare.tex", "\n".join(latex))):
            with atomic_file(args.out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        results = Results(args.out, "compare", settings)
        results.write(table, {"pareto": pareto(swept)}, {name: version(name) for name in ("torch", "transformers")})
    print("\n".join(markdown))
    print(f"results: {args.out}/ (compare.csv, compare.json, compare.md, compare.tex, pareto.png)")


if __name__ == "__main__":
    run(main)
