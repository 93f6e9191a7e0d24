"""One SAE in a steering experiment: prompts, completions over a sweep, their scores and grades."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from utils.activation_cache import ActivationCache
from utils.activation_store import cache_name
from utils.cache_plan import choose_texts
from utils.completions import write_completions
from utils.concept_latents import concept_latents
from utils.errors import UserError
from utils.evaluated import Evaluated, check_fit
from utils.generation import Completion, CompletionLog, Prompt, sweep
from utils.judges.grading import GRADES, grade, prompt_versions
from utils.judges.judge import Judge
from utils.labelled_text import LabelledText
from utils.models import compute_dtype, default_device, find_model, load_config
from utils.results import Results
from utils.sae_loading import get_model
from utils.scorers.base import Scored, Scorer, score_cached
from utils.scorers.fluency import Fluency
from utils.steerers import LatentSteerer
from utils.steering_tables import summarise
from utils.style_transitions import transition_perplexities, transitions
from utils.tokens import prompt_ids, special_token_ids

COMPLETIONS = ".completions.csv"  # beside a piece


@dataclass(frozen=True)
class Experiment:
    """What makes the experiments differ.

    Attributes:
        name: of the folder, such as `Steering_SP`.
        alphas: the sweep, where none is given.
        betas: likewise.
        tokens: whether the concepts are those of tokens (all their latents steer), or of texts.
        effect: the measure that steering is to change.
        cut: tokens that are taken from the end of a text, to be written anew.
        grades: of the judge, where there is one, see `utils.judges.grading.GRADES`.
        styles: names of the two styles of sentences, where the likelihood of the next one is measured.
        transition_alphas: the strengths for that.
    """

    name: str
    alphas: tuple[float, ...]
    betas: tuple[str, ...]
    tokens: bool
    effect: str
    cut: int
    grades: tuple[str, ...]
    styles: tuple[str, str] | None = None
    transition_alphas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """Steers by the latents of one SAE, scores, and gives tidy rows (alpha, measure, value, low, high, n, missing)."""

    subject: Evaluated
    args: argparse.Namespace
    experiment: Experiment
    data: LabelledText
    split: str
    alphas: list[float]
    results: Results
    scorers: list[Scorer]
    judge: Judge | None
    latents: tuple[int, ...]

    def completions_made_of(self, beta: str) -> dict[str, Any]:
        """Return what decides a completion, but for its strength."""
        made_of = self.subject.made_of | {"latents": list(self.latents), "beta": beta}
        return made_of | {"dtype": str(self._dtype).removeprefix("torch.")}

    def made_of(self, label: str, beta: str) -> dict[str, Any]:
        """Return what decides the rows; strengths that were there before, made in the same way, stay."""
        made_of = self.completions_made_of(beta) | {"scorers": [scorer.fingerprint for scorer in self.scorers]}
        if self.judge is not None:
            made_of["judge"] = self.judge.settings.decide | prompt_versions(self.experiment.grades)
        made_of["transitions"] = getattr(self.args, "transitions", 0)
        before = dict(self.results.made_of(label) or {})
        alphas = before.pop("alphas", [])
        return made_of | {"alphas": sorted({*self.alphas, *(alphas if before == made_of else [])})}

    @property
    def _dtype(self) -> torch.dtype:
        return compute_dtype(load_config(find_model(self.subject.model, self.args.model_path)), default_device())

    def run(self, label: str, beta: str) -> list[dict[str, Any]]:
        """Complete, score and sum up; what was completed or scored before is not done again."""
        made_of = self.made_of(label, beta)
        model, tokenizer = get_model(
            self.subject.model,
            str(self.subject.loaded.origin["ref"]),
            model_path=self.args.model_path,
            block=self.subject.block,
            site=self.subject.site,
            dtype=self._dtype,
        )
        model.to(default_device())
        prompts = make_prompts(
            self.data, self.split, tokenizer, self.args.max_texts, self.args.seed, self.experiment.cut
        )
        steering = LatentSteerer(self.latents, beta)
        log = CompletionLog(self._log_path(label, beta, "completions"))
        completions = sweep(
            model, tokenizer, prompts, made_of["alphas"], steering,
            log=log, max_new_tokens=self.args.max_new_tokens, rows=self.args.rows,
        )  # fmt: skip
        table = self._scored(completions, {prompt.id: prompt.text for prompt in prompts}, model, tokenizer)
        path = self.results.path(label, made_of).with_suffix(COMPLETIONS)
        write_completions(path, table, self.results.settings | {"scorers": made_of["scorers"]})
        rows = summarise(table, self.args.seed) + self._transitions(label, steering, model, tokenizer)
        about = {"name": self.subject.name, "guided": self.subject.loaded.is_guided, "method": beta}
        return [about | row for row in rows]

    def _log_path(self, label: str, beta: str, what: str) -> Path:
        """What was made at other strengths is of use, too: the file does not depend on them, nor on scorers."""
        return self.results.path(label, self.completions_made_of(beta)).with_suffix(f".{what}.jsonl")

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
        revision = find_model(self.subject.model, self.args.model_path).revision
        scorers = [*self.scorers, Fluency(model, tokenizer, revision)]
        parts = [pd.DataFrame(score_cached(scorer, texts, self.results.folder / "scores")) for scorer in scorers]
        if self.experiment.effect not in parts[0].columns:  # no text could be scored
            parts[0][self.experiment.effect] = np.nan
        if self.judge is not None:
            for name in self.experiment.grades:
                grades = pd.DataFrame(grade(self.judge, name, texts), index=range(len(texts)))
                parts.append(grades.reindex(columns=GRADES[name].measures()))
        return pd.concat([pd.DataFrame(columns), *parts], axis=1)

    def _transitions(self, label: str, steering: LatentSteerer, model: Any, tokenizer: Any) -> list[dict[str, Any]]:
        if self.experiment.styles is None or not self.args.transitions:
            return []
        chosen = transitions(
            self.data.splits[self.split], self.experiment.styles, self.args.transitions, self.args.seed
        )
        path = self._log_path(label, steering.beta, "transitions")
        rows = transition_perplexities(model, tokenizer, chosen, self.experiment.transition_alphas, steering, path)
        table = pd.DataFrame(rows).pivot_table(index=["alpha", "pair"], columns="name", values="value").reset_index()
        return summarise(table.rename(columns={"pair": "prompt_id"}), self.args.seed)


def steering_latents(
    subject: Evaluated, args: argparse.Namespace, experiment: Experiment, concepts: list[str]
) -> tuple[int, ...]:
    """Return the latents to steer by: those asked for, those tied to the concepts of a guided SAE, else the roots.

    Raises:
        UserError: a latent out of range; an SAE that was guided by other concepts, or not guided, of which no
            activations are there to choose on.
    """
    origin, n_latents = subject.loaded.origin, subject.loaded.sae.config.n_latents
    if args.latents:
        for latent in args.latents:
            if not 0 <= latent < n_latents:
                raise UserError(f"--latents {latent}: {subject.label} has latents 0 to {n_latents - 1}")
        return tuple(dict.fromkeys(args.latents))
    if subject.loaded.is_guided and origin.get("concepts"):
        tied = [c for c, concept in enumerate(origin["concepts"]) if concept in concepts]
        if not tied:
            raise UserError(f"{subject.label}: guided by {', '.join(origin['concepts'])}, not by {', '.join(concepts)}")
        return tuple(tied)
    if "dataset" not in origin:
        raise UserError(f"{subject.label}: does not tell its concepts' latents; give --latents")
    folder = args.data / cache_name(subject.model, origin["dataset"], subject.block, subject.site)
    cached = replace(subject, stored=ActivationCache(folder))
    check_fit(subject.label, subject.loaded, cached.cache)
    split = "train" if "train" in cached.cache.manifest["splits"] else cached.split_name(None)
    found = concept_latents(cached, split, tokens=experiment.tokens, seed=args.seed)
    own = [int(latent) for latent, concept in zip(found, cached.cache.concepts, strict=True) if concept in concepts]
    latents = tuple(dict.fromkeys(latent for latent in own if latent >= 0))
    if not latents:
        raise UserError(f"{subject.label}: no latent tells any concept apart; give --latents")
    return latents


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
