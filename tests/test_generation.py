"""Completions of a steered batch against one row at a time, and a log that survives anything."""

import pytest
import torch

from llama3_SAE import LLama3_SAE
from utils.errors import UserError
from utils.generation import Completion, CompletionLog, Prompt, complete, sweep
from utils.latent_steerer import LatentSteerer
from utils.models import load_tokenizer
from utils.sae import SAE, SAEConfig

TEXTS = ["Why do you cry at night ?", "Thou art", "I prithee , sweet friend ,"]
ALPHAS = [-1.5, 0.0, 2.0]
STEERING = LatentSteerer((3, 7), "constant")


@pytest.fixture
def model(tiny_llama):
    torch.manual_seed(0)
    return LLama3_SAE.attach(tiny_llama.folder, SAE(SAEConfig(32, 64, 8)), 1)


@pytest.fixture
def tokenizer(tiny_llama):
    return load_tokenizer(tiny_llama)


@pytest.fixture
def prompts(tokenizer):
    return [Prompt(i, tokenizer(text)["input_ids"], text) for i, text in enumerate(TEXTS)]


def alone(model, tokenizer, prompt, alpha, n_tokens):
    """Token by token, without padding, without a cache of keys and values."""
    ids = list(prompt.input_ids)
    with torch.no_grad(), model.steer({3: alpha, 7: alpha}):
        for _ in range(n_tokens):
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
    return tokenizer.decode(ids[len(prompt.input_ids) :], skip_special_tokens=True)


def test_a_batch_with_several_strengths_equals_single_runs(model, tokenizer, prompts, tmp_path):
    log = CompletionLog(tmp_path / "c.jsonl")
    found = sweep(model, tokenizer, prompts, ALPHAS, STEERING, log=log, max_new_tokens=6, rows=4)
    assert [(c.prompt_id, c.alpha) for c in found] == [(p.id, alpha) for p in prompts for alpha in ALPHAS]
    for completion in found:
        expected = alone(model, tokenizer, prompts[completion.prompt_id], completion.alpha, 6)
        assert completion.text == expected
        assert completion.n_tokens <= 6
    texts = {(c.prompt_id, c.alpha): c.text for c in found}
    assert any(texts[i, -1.5] != texts[i, 0.0] for i in range(3))


def test_no_strength_gives_the_plain_completion(model, tokenizer, prompts):
    steered = complete(model, tokenizer, prompts, [0.0] * 3, STEERING, 8)
    plain = complete(model, tokenizer, prompts, [0.0] * 3, LatentSteerer((), "constant"), 8)
    assert steered == plain


def test_the_prompt_is_no_part_of_a_completion_and_the_end_is_cut(model, tokenizer, prompts):
    model.generation_config.eos_token_id = complete_ids(model, prompts[0])[2]
    (completion,) = complete(model, tokenizer, prompts[:1], [0.0], STEERING, 8)
    assert completion.n_tokens <= 2
    assert not completion.text.startswith(TEXTS[0])


def complete_ids(model, prompt):
    ids = torch.tensor([prompt.input_ids])
    with torch.no_grad():
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()


def test_a_sweep_goes_on_where_it_was_cut_off(model, tokenizer, prompts, tmp_path, monkeypatch):
    whole = sweep(
        model, tokenizer, prompts, ALPHAS, STEERING, log=CompletionLog(tmp_path / "a"), max_new_tokens=4, rows=2
    )
    path = tmp_path / "b"
    log = CompletionLog(path)
    log.append(whole[:4])
    with path.open("a") as file:
        file.write('{"prompt_id": 2, "al')  # cut off in the middle of a line
    made = []

    def counted(model, tokenizer, prompts, alphas, *rest):
        made.extend(alphas)
        return complete(model, tokenizer, prompts, alphas, *rest)

    monkeypatch.setattr("utils.generation.complete", counted)
    again = sweep(model, tokenizer, prompts, ALPHAS, STEERING, log=CompletionLog(path), max_new_tokens=4, rows=2)
    assert again == whole
    assert len(made) == 5
    lines = path.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 9


def test_a_damaged_log_names_its_line(tmp_path):
    path = tmp_path / "c.jsonl"
    CompletionLog(path).append([Completion(0, 0.5, "x", 1)])
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(UserError, match="line 2 is damaged"):
        CompletionLog(path)
