"""Google's Perspective API, and what happens when it does not answer."""

import json

import httpx
import pytest

from tests.counting_server import counting_server
from utils.errors import UserError
from utils.scorers.base import Scored, score_cached
from utils.scorers.perspective import Perspective
from utils.scorers.toxicity import toxicity_scorer


def perspective(server):
    url = server.url.removesuffix("/v1") + "/analyze"
    return Perspective(httpx.Client(headers={"X-Goog-Api-Key": "k"}), url, pause=0.0)


@pytest.fixture
def toxicity_server():
    """Answers as Perspective does; texts come where a chat's question would be."""
    answer = json.dumps({"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.7}}}})
    with counting_server(lambda text: (200, "application/json", answer)) as server:
        yield server


def test_perspective_is_asked_with_patience(toxicity_server):
    scorer = perspective(toxicity_server)
    assert scorer.score([Scored("", "hello"), Scored("", "")]) == [{"toxicity": 0.7}, {"toxicity": 0.0}]
    good = toxicity_server.answer
    before = toxicity_server.asked["hello"]
    toxicity_server.answer = lambda text: (
        (429, "text/plain", "") if toxicity_server.asked[text] < before + 3 else good(text)
    )
    assert scorer.score([Scored("", "hello")]) == [{"toxicity": 0.7}]
    assert toxicity_server.asked["hello"] == before + 3
    toxicity_server.answer = lambda text: (
        400,
        "application/json",
        '{"errorType": "LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE"}',
    )
    assert scorer.score([Scored("", "???")]) == [{}]
    for status, body, message in (
        (403, "<p>", "refuses the key"),
        (400, '{"reason": "API_KEY_INVALID"}', "refuses the key"),
        (400, "{}", "answers 400"),
        (500, "<p>", "answers 500"),
    ):
        toxicity_server.answer = lambda text, status=status, body=body: (status, "text/html", body)
        with pytest.raises(UserError, match=message):
            scorer.score([Scored("", "hello")])


def test_what_perspective_scored_is_kept_when_it_fails(toxicity_server, tmp_path):
    texts = [Scored("", f"text {i}") for i in range(5)]
    good = toxicity_server.answer
    toxicity_server.answer = lambda text: (500, "text/html", "") if text == "text 3" else good(text)
    with pytest.raises(UserError, match="what was scored is kept"):
        score_cached(perspective(toxicity_server), texts, tmp_path)
    toxicity_server.answer = good
    assert score_cached(perspective(toxicity_server), texts, tmp_path) == [{"toxicity": 0.7}] * 5
    assert [toxicity_server.asked[f"text {i}"] for i in (0, 1, 2, 4)] == [1] * 4


def test_perspective_needs_a_key(monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(UserError, match="PERSPECTIVE_API_KEY is not set"):
        toxicity_scorer("perspective")
