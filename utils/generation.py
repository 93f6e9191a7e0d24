"""Greedy completions of prompts under a sweep of steering strengths; several strengths share a batch."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessorList

from utils.json_lines import append_lines, read_lines
from utils.steerers import Batch, Steerer


@dataclass(frozen=True)
class Prompt:
    """What is to be continued.

    Attributes:
        id: its number in the split.
        input_ids: its tokens, special ones included.
        text: its characters.
    """

    id: int
    input_ids: list[int]
    text: str


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt, steered by a strength; the prompt is no part of it."""

    prompt_id: int
    alpha: float
    text: str
    n_tokens: int


def complete(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    alphas: Sequence[float],
    steerer: Steerer,
    max_new_tokens: int,
) -> list[Completion]:
    """Continue a batch of prompts greedily, each steered by its own strength.

    Args:
        model: what the steerer steers; for latents one with an SAE, see `utils.sae_loading.get_model`.
        tokenizer: the model's.
        prompts: the rows of the batch.
        alphas: a strength for each row; 0 leaves it unsteered.
        steerer: steers.
        max_new_tokens: at most so many tokens are written.
    """
    device = model.get_input_embeddings().weight.device
    longest = max(len(prompt.input_ids) for prompt in prompts)
    padding = [longest - len(prompt.input_ids) for prompt in prompts]
    pad = tokenizer.pad_token_id
    input_ids_BT = torch.tensor([[pad] * n + prompt.input_ids for n, prompt in zip(padding, prompts, strict=True)])
    attention_mask_BT = torch.tensor([[0] * n + [1] * (longest - n) for n in padding])
    ends = model.generation_config.eos_token_id
    batch = Batch(input_ids_BT.to(device), attention_mask_BT.to(device))
    greedy = GenerationConfig(
        do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,  # not those the model comes with
        max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=ends,
    )  # fmt: skip
    with torch.inference_mode(), steerer.applied(model, alphas, batch) as processors:
        written_BT = model.generate(
            input_ids=batch.input_ids_BT,
            attention_mask=batch.attention_mask_BT,
            generation_config=greedy,
            logits_processor=LogitsProcessorList(processors),
        )[:, longest:]
    return [
        _completion(prompt, alpha, ids, tokenizer, ends)
        for prompt, alpha, ids in zip(prompts, alphas, written_BT.tolist(), strict=True)
    ]


def _completion(prompt: Prompt, alpha: float, ids: list[int], tokenizer: Any, ends: int | list[int]) -> Completion:
    """Cut behind the first token that ends a text; what follows is padding."""
    stops = {ends} if isinstance(ends, int) else set(ends or [])
    end = next((n for n, token in enumerate(ids) if token in stops), len(ids))
    return Completion(prompt.id, alpha, tokenizer.decode(ids[:end], skip_special_tokens=True), end)


class CompletionLog:
    """Completions in a file of JSON lines, which grows as they come; a line that was cut off is done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        names = [field.name for field in fields(Completion)]
        found = [Completion(**{name: line[name] for name in names}) for line in read_lines(path, names)]
        self.completions = list({(one.prompt_id, one.alpha): one for one in found}.values())

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def done(self) -> set[tuple[int, float]]:
        """The prompts and strengths that are there."""
        return {(completion.prompt_id, completion.alpha) for completion in self.completions}

    def append(self, completions: Sequence[Completion]) -> None:
        """Write completions through to the disk."""
        append_lines(self.path, [asdict(completion) for completion in completions])
        self.completions += completions


def sweep(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    alphas: Sequence[float],
    steerer: Steerer,
    *,
    log: CompletionLog,
    max_new_tokens: int,
    rows: int,
) -> list[Completion]:
    """Continue every prompt under every strength; those that the log holds are not repeated.

    Args:
        model: see `complete`.
        tokenizer: the model's.
        prompts: all of them.
        alphas: the strengths.
        steerer: steers.
        log: where completions go, batch by batch.
        max_new_tokens: see `complete`.
        rows: of a batch.

    Returns:
        The completions, by prompt and then by strength.
    """
    done = log.done
    todo = [work for work in _by_length(prompts, alphas) if (work[0].id, work[1]) not in done]
    total = len(prompts) * len(alphas)
    with tqdm(total=total, initial=total - len(todo), unit="text", desc="completions", delay=2) as bar:
        for start in range(0, len(todo), rows):
            batch = todo[start : start + rows]
            own_prompts, own_alphas = zip(*batch, strict=True)
            log.append(complete(model, tokenizer, own_prompts, own_alphas, steerer, max_new_tokens))
            bar.update(len(batch))
    wanted = {(prompt.id, alpha) for prompt in prompts for alpha in alphas}
    own = [completion for completion in log.completions if (completion.prompt_id, completion.alpha) in wanted]
    return sorted(own, key=lambda completion: (completion.prompt_id, completion.alpha))


def _by_length(prompts: Sequence[Prompt], alphas: Sequence[float]) -> Iterator[tuple[Prompt, float]]:
    """Yield prompts of similar length together, longest first, so that the first batch takes the most memory."""
    for prompt in sorted(prompts, key=lambda prompt: -len(prompt.input_ids)):
        for alpha in alphas:
            yield prompt, alpha
