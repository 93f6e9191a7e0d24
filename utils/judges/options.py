"""The options of a judge, which several scripts share."""

import argparse
from pathlib import Path
from typing import Any

from utils.cli import Parser, non_negative_float, non_negative_int, positive_int
from utils.errors import UserError
from utils.judges.judge import KEY, Judge, JudgeSettings

JUDGE_HELP = f"""\
A judge is any endpoint with OpenAI's chat interface (a hosted one, vLLM, llama.cpp, `transformers serve`). Its key
comes from the environment variable {KEY}. Answers are kept on disk; what was asked once is not asked again.
"""


def add_judge_arguments(parser: Parser) -> None:
    """Add the options that say which language model judges, and how it is asked."""
    defaults = JudgeSettings("", "")
    group = parser.add_argument_group("judge")
    group.add_argument("--judge-url", help="its address, such as https://host/v1")
    group.add_argument("--judge-model", help="its name there")
    group.add_argument("--judge-max-tokens", type=positive_int, default=defaults.max_tokens, help="of an answer")
    group.add_argument("--judge-parallel", type=positive_int, default=defaults.parallel, help="calls at a time")
    group.add_argument("--judge-per-minute", type=non_negative_float, help="calls at most (default: no limit)")
    group.add_argument("--judge-timeout", type=non_negative_float, default=defaults.timeout, help="seconds for a call")
    group.add_argument("--judge-retries", type=non_negative_int, default=defaults.retries, help="of a call that fails")
    price = "of a million tokens read, and of a million written; to report the cost"
    group.add_argument("--judge-price", type=non_negative_float, nargs=2, metavar=("READ", "WRITTEN"), help=price)


def judge_of(args: argparse.Namespace, folder: Path) -> Judge | None:
    """Return the judge that was asked for, None where none was; answers go into a folder.

    Raises:
        UserError: an address without a model, or the other way; no key.
    """
    if args.judge_url is None and args.judge_model is None:
        return None
    if args.judge_url is None or args.judge_model is None:
        raise UserError("--judge-url and --judge-model go together")
    settings = JudgeSettings(
        args.judge_url,
        args.judge_model,
        max_tokens=args.judge_max_tokens,
        retries=args.judge_retries,
        timeout=args.judge_timeout or None,
        parallel=args.judge_parallel,
        per_minute=args.judge_per_minute or None,
        price=tuple(args.judge_price) if args.judge_price else None,
    )
    return Judge.connect(settings, folder)


def describe(judge: Judge) -> str:
    """Return one line on what the judge did, what failed, and what it cost."""
    report: dict[str, Any] = judge.report()
    cost = f", cost {report['cost']:.4f}" if "cost" in report else ""
    return (
        f"judge {judge.settings.model}: {report['answered']} call(s) answered, {report['remembered']} from the disk, "
        f"{report['failed']} failed, {report['unread']} question(s) without an answer that can be read; "
        f"{report['tokens_in']} + {report['tokens_out']} tokens{cost}"
    )
