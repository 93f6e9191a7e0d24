"""One candidate in a steering experiment: prompts, completions over a sweep, their scores and grades."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from utils.cache_plan import choose_texts
from utils.completions import write_completions
from utils.errors import UserError
from utils.generation import Completion, CompletionLog, Prompt, sweep
from utils.judges.grading import GRADES, grade, prompt_versions
from utils.judges.judge import Judge
from utils.labelled_text import LabelledText
from utils.latent_steerer import LatentSteerer
from utils.results import Results
from utils.scorers.base import Scored, Scorer, score_cached
from utils.scorers.fluency import Fluency
from utils.steerers import Steerer
from utils.steering_candidates import Candidate
from utils.steering_experiment import Experiment
from utils.steering_tables import summarise
from utils.style_transitions import transition_perplexities, transitions
from utils.tokens import prompt_ids, special_token_ids

COMPLETIONS = ".completions.csv"  # beside a piece


@dataclass(frozen=True)
class Sweep:
    """Steers by one candidate, scores, and gives tidy rows (alpha, measure, value, low, high, n, missing)."""

    candidate: Candidate
    args: argparse.Namespace
    experiment: Experiment
    data: LabelledText
    split: str
    alphas: list[float]
    results: Results
    scorers: list[Scorer]
    judge: Judge | None

    def made_of(self) -> dict[str, Any]:
        """Return what decides the rows; strengths that were there before, made in the same way, stay."""
        made_of = self.candidate.made_of | {"scorers": [scorer.fingerprint for scorer in self.scorers]}
        if self.judge is not None:
            made_of["judge"] = self.judge.settings.decide | prompt_versions(self.experiment.grades)
        made_of["transitions"] = getattr(self.args, "transitions", 0)
        before = dict(self.results.made_of(self.candidate.label) or {})
        alphas = before.pop("alphas", [])
        return made_of | {"alphas": sorted({*self.alphas, *(alphas if before == made_of else [])})}

    def run(self) -> list[dict[str, Any]]:
        """Complete, score and sum up; what was completed or scored before is not done again."""
        made_of = self.made_of()
        model, tokenizer, steerer = self.candidate.load()
        prompts = make_prompts(
            self.data, self.split, tokenizer, self.args.max_texts, self.args.seed, self.experiment.cut
        )
        log = CompletionLog(self._log_path("completions"))
        completions = sweep(
            model, tokenizer, prompts, made_of["alphas"], steerer,
            log=log, max_new_tokens=self.args.max_new_tokens, rows=self.args.rows,
        )  # fmt: skip
        table = self._scored(completions, {prompt.id: prompt.text for prompt in prompts}, model, tokenizer)
        path = self.results.path(self.candidate.label, made_of).with_suffix(COMPLETIONS)
        write_completions(path, table, self.results.settings | {"scorers": made_of["scorers"]})
        rows = summarise(table, self.args.seed) + self._transitions(steerer, model, tokenizer)
        about = {"name": self.candidate.name, "guided": self.candidate.guided, "method": self.candidate.method}
        return [about | row for row in rows]

    def _log_path(self, what: str) -> Path:
        """What was made at other strengths is of use, too: the file does not depend on them, nor on scorers."""
        return self.results.path(self.candidate.label, self.candidate.made_of).with_suffix(f".{what}.jsonl")

    def _scored(
        self, completions: list[Completion], prompts: dict[int, str], model: Any, tokenizer: Any
    ) -> pd.DataFrame:
        texts = [Scored(prompts[completion.prompt_id], completion.text) for completion in completions]
        columns = {
            "prompt_id": [completion.prompt_id for completion in completions],
            "alpha": [completion.alpha for completion in completions],
            "prompt": [text.prompt for text in texts],
            "completion": [text.text for text in texts],
            "n_tokens": [completion.n_tokens for completion in completions],
            "empty": [float(not text.text.strip()) for text in texts],
        }
        scorers = [*self.scorers, Fluency(model, tokenizer, self.candidate.revision)]
        parts = [pd.DataFrame(score_cached(scorer, texts, self.results.folder / "scores")) for scorer in scorers]
        if self.experiment.effect not in parts[0].columns:  # no text could be scored
            parts[0][self.experiment.effect] = np.nan
        if self.judge is not None:
            for name in self.experiment.grades:
                grades = pd.DataFrame(grade(self.judge, name, texts), index=range(len(texts)))
                parts.append(grades.reindex(columns=GRADES[name].measures()))
        return pd.concat([pd.DataFrame(columns), *parts], axis=1)

    def _transitions(self, steerer: Steerer, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
        if self.experiment.styles is None or not self.args.transitions or not isinstance(steerer, LatentSteerer):
            return []
        chosen = transitions(
            self.data.splits[self.split], self.experiment.styles, self.args.transitions, self.args.seed
        )
        path = self._log_path("transitions")
        rows = transition_perplexities(model, tokenizer, chosen, self.experiment.transition_alphas, steerer, path)
        table = pd.DataFrame(rows).pivot_table(index=["alpha", "pair"], columns="name", values="value").reset_index()
        return summarise(table.rename(columns={"pair": "prompt_id"}), self.args.seed)


def make_prompts(
    data: LabelledText, split: str, tokenizer: Any, max_texts: int | None, seed: int, cut: int
) -> list[Prompt]:
    """Return the texts of a split as prompts, without their last `cut` tokens; those with nothing left are left out.

    A special token that a tokenizer puts at the end is no part of a prompt.

    Raises:
        UserError: no prompt is left.
    """
    special = set(special_token_ids(tokenizer))
    prompts = []
    for text_id in choose_texts(len(data.splits[split]), max_texts, seed):
        ids = prompt_ids(tokenizer, data.splits[split][text_id].text)
        ids = ids[: max(0, len(ids) - cut)]
        if any(token not in special for token in ids):
            prompts.append(Prompt(text_id, ids, tokenizer.decode(ids, skip_special_tokens=True)))
    if not prompts:
        raise UserError(f"{data.name}, split {split!r}: no text is longer than the {cut} tokens that are cut off")
    return prompts
