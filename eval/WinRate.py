"""Which of two methods completes better? Pairs of completions, judged prompt by prompt, and how sure that is."""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from utils.atomic import sha256_file, sha256_json
from utils.cli import Parser, positive_int, run, seed
from utils.completions import paired, settings_beside, write_csv
from utils.errors import UserError
from utils.figure_style import new_figure
from utils.judges.grading import prompt_versions
from utils.judges.judge import Judge
from utils.judges.options import JUDGE_HELP, add_judge_arguments, describe, judge_of
from utils.results import Results, only_process
from utils.win_rate import TASKS, judge_pairs, outcome, score_pairs, tally

EXAMPLES = f"""\
examples:
  python eval/WinRate.py GUIDED.csv VANILLA.csv --task sp                       # by the scorers, no judge
  python eval/WinRate.py GUIDED.csv GUIDED.csv --task sp --alpha 0.2 0          # steered against unsteered
  python eval/WinRate.py GUIDED.csv VANILLA.csv --task non-tox --judge-url http://127.0.0.1:8000/v1 --judge-model NAME

The CSV files are those in completions/ of a folder of eval/Steering_*.py, or any with the columns prompt and completion
(for the scorers also the measure in question, and log_perplexity).

{JUDGE_HELP}
It sees each pair four times, each continuation first and second, called Alpha and Beta; a pair is won where all four
agree. What cannot be read of its answers is missing, neither a draw nor a loss. The scorers see a pair once: what
counts is the effect (toxicity, style, personal data), and where it is equal the perplexity.
"""


def main(argv: Sequence[str] | None = None) -> pd.DataFrame:
    """Parse the command line, judge the pairs, write the results; return the table of all comparisons there."""
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.add_argument("a", type=Path, metavar="A.csv", help="completions of one method")
    parser.add_argument("b", type=Path, metavar="B.csv", help="completions of the other")
    parser.add_argument("--task", choices=TASKS, required=True, help="what is better")
    at = ", ".join(f"{name} {task.alpha:g}" for name, task in TASKS.items())
    parser.add_argument("--alpha", type=float, nargs="+", help=f"strength of both, or of each (default: {at})")
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="of the methods (default: the files' names)")
    parser.add_argument("--judge", choices=("scorer", "llm"), help="default: llm with --judge-url, else scorer")
    parser.add_argument("--max-pairs", type=positive_int, help="at most so many, chosen at random")
    parser.add_argument("--seed", type=seed, default=0, help="of the choice, and of the intervals")
    parser.add_argument("--out", type=Path, help="folder for results (default: results/WinRate-<task>-<judge>)")
    add_judge_arguments(parser)
    args = parser.parse_args(argv)
    kind = "llm" if args.judge_url or args.judge_model else "scorer"
    if args.judge not in (None, kind):
        raise UserError("--judge llm needs --judge-url and --judge-model; --judge scorer takes neither")
    alphas = args.alpha or [TASKS[args.task].alpha]
    if len(alphas) > 2:
        raise UserError("--alpha: one strength for both, or two")
    alphas = (alphas[0], alphas[-1])
    out = args.out or Path("results") / f"WinRate-{args.task}-{kind}"
    pairs = paired(args.a, args.b, alphas)
    if args.max_pairs is not None and args.max_pairs < len(pairs):
        pairs = pairs.sample(args.max_pairs, random_state=args.seed).sort_index()
    settings = {"task": args.task, "judge": kind, "max_pairs": args.max_pairs, "seed": args.seed}
    settings |= {"of": settings_beside(args.a) or settings_beside(args.b)}
    judge = judge_of(args, out)
    if judge is not None:
        prompts = prompt_versions(["pair", f"pair_{args.task}"])
        settings |= judge.settings.decide | {"prompts": prompts}
    else:
        _check_measures(args, pairs)
    names = args.names or _names(args.a, args.b)
    label = " against ".join(f"{name} at {alpha:g}" for name, alpha in zip(names, alphas, strict=True))
    made_of = {"a": sha256_file(args.a), "b": sha256_file(args.b), "alphas": list(alphas)}
    with only_process(out):
        return _report(args, Results(out, "winrate", settings), pairs, judge, label, made_of)


def _report(
    args: Any, results: Results, pairs: pd.DataFrame, judge: Judge | None, label: str, made_of: dict[str, Any]
) -> pd.DataFrame:
    out = results.folder
    pairs_path = out / "pairs" / f"{sha256_json([label, made_of])[:8]}.csv"
    results.piece(label, made_of, partial(_compare, args, pairs, judge, pairs_path), retry=_is_incomplete)
    table = pd.DataFrame([{"comparison": label} | row for label in results.labels for row in results.rows(label)])
    title = f"{args.task}, judged by {args.judge_model or 'scorers'}"
    packages = {name: version(name) for name in ("openai", "pydantic", "scipy", "pandas")}
    results.write(table, {"winrate": _bars(table, title)}, packages)
    print(table.drop(columns=["alpha_preferred", "first_preferred"]).round(3).T.to_string(header=False))
    if judge is not None:
        print(describe(judge))
    print(f"results: {out}/ (winrate.csv, winrate.json, winrate.png, pairs/ with every judgement)")
    return table


def _compare(args: Any, pairs: pd.DataFrame, judge: Judge | None, path: Path) -> list[dict[str, Any]]:
    task = TASKS[args.task]
    judgements = score_pairs(task, pairs) if judge is None else judge_pairs(judge, args.task, pairs)
    rows = []
    for row, own in zip(pairs.to_dict("records"), judgements, strict=True):
        said = {f"completion_{side}": row[f"completion_{side}"] for side in "ab"}
        for number, judgement in enumerate(own):
            about = {"prompt": row["prompt"], "arrangement": number, "outcome": outcome(own)}
            rows.append(about | vars(judgement) | said)
    write_csv(path, pd.DataFrame(rows))
    empty = {f"empty_{side}": int((pairs[f"completion_{side}"].str.strip() == "").sum()) for side in "ab"}
    return [tally(judgements, args.seed) | empty]


def _is_incomplete(rows: list[dict[str, Any]]) -> bool:
    """Tell whether a call may still bring what is missing."""
    return any(row["missing"] > 0 for row in rows)


def _check_measures(args: Any, pairs: pd.DataFrame) -> None:
    for path, side in ((args.a, "a"), (args.b, "b")):
        for measure in (TASKS[args.task].effect, "log_perplexity"):
            if f"{measure}_{side}" not in pairs.columns:
                raise UserError(f"{path}: no column {measure!r}, which {args.task} needs; or judge with --judge-url")


def _names(a: Path, b: Path) -> list[str]:
    return [a.stem, b.stem] if a.stem != b.stem or a == b else [str(a.with_suffix("")), str(b.with_suffix(""))]


def _bars(table: pd.DataFrame, title: str) -> Figure:
    figure = new_figure(7, 1.2 + 0.6 * len(table))
    axes = figure.subplots()
    left = pd.Series(0.0, index=table.index)
    parts = {"wins": "#2a6f97", "ties": "#bbbbbb", "inconsistent": "#dddddd", "losses": "#c8553d", "missing": "#ffffff"}
    for name, color in parts.items():
        width = table[name] / table["pairs"]
        axes.barh(table["comparison"], width, left=left, color=color, edgecolor="#555555", linewidth=0.5, label=name)
        left = left + width
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of pairs")
    axes.set_title(title, loc="left", fontsize=9)
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(parts), fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    run(main)
