"""The token view: what it holds, that nothing in the data becomes markup, and how it behaves in a browser."""

import os
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from tests.scripts import read_token_view
from utils.labelled_text import Span, Text
from utils.models import load_tokenizer
from utils.token_view import ViewedSAE, write_token_view

NASTY = "</script><img src=x onerror=alert(1)> & \"friend\" 'weep' \u2028 <b>"
CONCEPTS = ["WHO", "<i>NUMBER</i>"]


@pytest.fixture
def page(tiny_llama, tmp_path):
    tokenizer = load_tokenizer(tiny_llama)
    texts = [Text("Why do you weep", (Span(0, 3, "WHO"),), 0.25), Text(NASTY), Text("My friend", (), 0.75)]
    rows = []
    for text_id, text in enumerate(texts):
        n_tokens = len(tokenizer(text.text)["input_ids"])
        for position in range(n_tokens):
            labelled = int(text_id == 0 and position == 0)
            rows.append([text_id, position, labelled, 0, (position + text_id) / 10, 0.5 * (text_id == 2)])
    names = ["text_id", "position", *(f"label {c}" for c in CONCEPTS), *(f"value {c}" for c in CONCEPTS)]
    tokens = pd.DataFrame(rows, columns=names)
    saes = [ViewedSAE("first", np.array([0, 7]), tokens), ViewedSAE("second </script>", np.array([3, -1]), tokens)]
    path = tmp_path / "tokens.html"
    write_token_view(path, "toy & test", saes, CONCEPTS, texts, [0, 1, 2], tokenizer)
    return path


def test_the_data_can_be_read_back_and_nothing_is_markup(page):
    html = page.read_text(encoding="utf-8")
    assert "<img" not in html
    assert "<i>" not in html
    assert html.count("</script>") == 2  # those of the page itself
    assert not re.search(r"(?:src|href)\s*=", html.split("<body>")[0])
    data = read_token_view(page)
    assert data["concepts"] == CONCEPTS
    assert ["".join(text["pieces"]) for text in data["texts"]] == ["Why do you weep", NASTY, "My friend"]
    assert data["texts"][0]["labels"] == {"0": [0]}
    assert [text["score"] for text in data["texts"]] == [0.25, None, 0.75]
    assert data["saes"][0]["values"][0][0][:3] == [0.0, 0.1, 0.2]
    n_tokens = max(data["texts"][1]["tokens"]) + 1
    assert len(data["saes"][0]["values"][0][1]) >= n_tokens


@pytest.fixture
def browser():
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine; install one, or name it in CHROMIUM")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,600"]

    def run(page, *more):
        home = page.parent / "profile"
        command = [found, *flags, f"--user-data-dir={home}", "--virtual-time-budget=2000", *more, f"file://{page}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    return run


def test_the_page_in_a_browser(page, browser):
    dom = browser(page, "--dump-dom")
    assert 'class="token labelled"' in dom
    assert "text 0 (1 of 3), score 0.25; latent 0" in dom
    assert dom.count("<img") == 0
    picture = page.with_name("shot.png")
    browser(page, f"--screenshot={picture}")
    assert picture.stat().st_size > 5000


def test_the_page_is_used_by_keyboard(page, browser):
    keys = ["ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"]
    press = "".join(
        f'document.body.dispatchEvent(new KeyboardEvent("keydown", {{key: "{k}", bubbles: true}}));' for k in keys
    )
    pressed = page.with_name("pressed.html")
    html = page.read_text(encoding="utf-8")
    pressed.write_text(html.replace("</body>", f"<script>{press}</script></body>"), encoding="utf-8")
    dom = browser(pressed, "--dump-dom")
    assert re.search(r'<p id="about"[^>]*>text 2 \(3 of 3\), score 0.75; latent 7;', dom)  # the last text stays
