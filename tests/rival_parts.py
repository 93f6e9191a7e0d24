"""A tiny model, prompts and pairs, for the tests of ways to steer."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from utils.generation import Prompt, complete
from utils.models import load_tokenizer
from utils.steerers import Batch

ABOUT = {"model": "tiny", "pairs": 3}
TEXTS = ["Why do you cry at night ?", "Thou art", "I prithee , sweet friend ,"]
PREFIX = "You are a bad man ."
PAIRS = [("you are", "Thou art a villain"), ("Why do you", "Wherefore dost thou weep"), ("my friend", "sweet friend")]


@pytest.fixture(params=["tiny_llama", "tiny_gemma2"])
def source(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def model(source):
    model = AutoModelForCausalLM.from_pretrained(source.folder, attn_implementation="eager").eval()
    with torch.no_grad():  # random weights of the usual size make all tokens alike
        model.lm_head.weight.mul_(8)
    return model


@pytest.fixture
def tokenizer(source):
    return load_tokenizer(source)


@pytest.fixture
def prompts(tokenizer):
    return [Prompt(i, tokenizer(text)["input_ids"], text) for i, text in enumerate(TEXTS)]


def batch_of(tokenizer, texts):
    tokenizer.padding_side = "left"
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    return Batch(encoded["input_ids"], encoded["attention_mask"])


def written(model, tokenizer, prompts, strengths, steerer, n=5):
    return [one.text for one in complete(model, tokenizer, prompts, strengths, steerer, n)]
