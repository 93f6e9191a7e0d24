"""A judge: asked in parallel, at a bounded rate, with patience; an answer is kept on disk and never paid for twice."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import openai
from tqdm import tqdm

from utils.errors import UserError, first_line
from utils.json_lines import append_lines, read_lines
from utils.keys import key_from_environment

KEY = "JUDGE_API_KEY"
_FAILURES_IN_A_ROW = 8  # one bad pair makes four
T = TypeVar("T")


@dataclass(frozen=True)
class JudgeSettings:
    """How a judge is asked.

    Attributes:
        url: of the endpoint, such as `https://host/v1`.
        model: its name there.
        max_tokens: of an answer.
        attempts: how often it is asked again where its answer cannot be read.
        retries: of a call that fails, with growing pauses.
        timeout: seconds until a call has failed.
        parallel: calls at a time.
        per_minute: calls at most; None for as many as may be.
        price: of a million tokens read, and of a million written.
    """

    url: str
    model: str
    max_tokens: int = 512
    attempts: int = 2
    retries: int = 4
    timeout: float | None = 60.0
    parallel: int = 4
    per_minute: float | None = None
    price: tuple[float, float] | None = None

    @property
    def decide(self) -> dict[str, Any]:
        """What of them decides answers."""
        return {"url": self.url, "model": self.model, "max_tokens": self.max_tokens}


@dataclass
class JudgeCounts:
    """What asking took: calls that were answered, answers from the disk, calls that failed, and tokens.

    `unread` counts questions to which no answer could be read.
    """

    answered: int = 0
    remembered: int = 0
    failed: int = 0
    unread: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass
class Judge:
    """Asks a language model; `client` comes from `connect`.

    Raises:
        UserError: no key in the environment; an endpoint that is not there, or refuses.
    """

    settings: JudgeSettings
    path: Path
    client: Any
    counts: JudgeCounts = field(default_factory=JudgeCounts)

    @classmethod
    def connect(cls, settings: JudgeSettings, folder: Path) -> "Judge":
        """Make a client; answers are kept in `judge.jsonl` of a folder."""
        _check_url(settings.url)
        key = key_from_environment(KEY, "the judge's key comes from there (any word for a server without keys)")
        # It is we who ask again, as its own retries would not keep to the rate.
        client = openai.OpenAI(api_key=key, base_url=settings.url, max_retries=0, timeout=settings.timeout)
        return cls(settings, folder / "judge.jsonl", client)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._known = {line["key"]: str(line["answer"]) for line in read_lines(self.path, ("key", "answer"))}
        self._next_call = 0.0
        self._failures_in_a_row = 0
        self._last_failure = ""

    def ask(self, questions: Sequence[str], read: Callable[[str], T | None]) -> list[T | None]:
        """Ask all questions; an answer that was given before is not asked for again.

        Args:
            questions: may repeat.
            read: makes something of an answer, None where that cannot be.

        Returns:
            What was read, None where no answer came or none could be read.

        Raises:
            UserError: a refused key, an unknown model, or an endpoint that does not answer.
        """
        distinct = list(dict.fromkeys(questions))
        found: dict[str, T | None] = {}
        pool = ThreadPoolExecutor(self.settings.parallel)
        try:
            ask = partial(self._ask_one, read=read)
            futures = {pool.submit(ask, question): question for question in distinct}
            for future in tqdm(as_completed(futures), total=len(futures), unit="answer", desc="judge", delay=5):
                found[futures[future]] = future.result()
        finally:
            pool.shutdown(cancel_futures=True)
        if self._last_failure and not self.counts.answered and not self.counts.remembered:
            raise UserError(self._gives_up())
        return [found[question] for question in questions]

    def report(self) -> dict[str, Any]:
        """Return the counts, and the cost where prices are known."""
        report: dict[str, Any] = dict(vars(self.counts))
        if self.settings.price is not None:
            read, written = self.settings.price
            report["cost"] = (self.counts.tokens_in * read + self.counts.tokens_out * written) / 1e6
        return report

    def _ask_one(self, question: str, read: Callable[[str], T | None]) -> T | None:
        for attempt in range(self.settings.attempts):
            key = self._key(question, attempt)
            answer = self._known.get(key)
            if answer is None:
                answer = self._call(question, key)
                if answer is None:
                    return None
            else:
                with self._lock:
                    self.counts.remembered += 1
            if (value := read(answer)) is not None:
                return value
        with self._lock:
            self.counts.unread += 1
        return None

    def _key(self, question: str, attempt: int) -> str:
        asked = [*self.settings.decide.values(), question, attempt]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def _call(self, question: str, key: str) -> str | None:
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW:
            raise UserError(self._gives_up())
        for attempt in range(self.settings.retries + 1):
            self._wait_for_turn()
            try:
                answer = self.client.chat.completions.create(
                    model=self.settings.model,
                    messages=[{"role": "user", "content": question}],
                    max_tokens=self.settings.max_tokens,
                    temperature=0,
                )
                text = answer.choices[0].message.content or ""
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise UserError(f"{self.settings.url} refused the key in {KEY} ({error.status_code})") from None
            except openai.NotFoundError:
                model = self.settings.model
                raise UserError(f"{self.settings.url}: no model {model!r}, or no such address (404)") from None
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                self._refused(error)  # this question alone, and for good
                return None
            except (openai.OpenAIError, ValueError, AttributeError, IndexError, TypeError) as error:
                if not self._passes(error) or attempt == self.settings.retries:
                    self._failed(self._describe(error))
                    return None
                time.sleep(_pause(error, attempt))
            else:
                return self._keep(key, text, getattr(answer, "usage", None))
        return None

    def _keep(self, key: str, text: str, usage: Any) -> str:
        with self._lock:
            append_lines(self.path, [{"key": key, "answer": text}])
            self._known[key] = text
            self._failures_in_a_row = 0
            self.counts.answered += 1
            self.counts.tokens_in += getattr(usage, "prompt_tokens", 0) or 0
            self.counts.tokens_out += getattr(usage, "completion_tokens", 0) or 0
        return text

    def _refused(self, error: openai.APIStatusError) -> None:
        """Note a question that the server does not take, such as one that is too long, or filtered."""
        body = error.body if isinstance(error.body, dict) else {}
        reason = next(iter(str(body.get("message", "")).splitlines()), "")[:100].replace(self.client.api_key, "...")
        with self._lock:
            self.counts.failed += 1
            self._last_failure = f"answers {error.status_code}" + (f" ({reason})" if reason else "")

    def _failed(self, what: str) -> None:
        with self._lock:
            self.counts.failed += 1
            self._failures_in_a_row += 1
            self._last_failure = what

    @staticmethod
    def _passes(error: Exception) -> bool:
        """Tell whether a trouble may be over soon."""
        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        if status is None:
            return isinstance(error, openai.APIConnectionError)
        return status in (408, 409, 429) or status >= 500

    def _describe(self, error: Exception) -> str:
        if isinstance(error, openai.APIStatusError):
            return f"answers {error.status_code}"
        if isinstance(error, openai.APITimeoutError):
            return f"gives no answer within {self.settings.timeout} s"
        if isinstance(error, openai.APIConnectionError):
            return "cannot be reached, or drops the connection"
        if isinstance(error, openai.OpenAIError):
            return first_line(error)
        return "answers, but not as OpenAI's chat interface does"

    def _gives_up(self) -> str:
        kept = f"{self.counts.answered} answer(s) came and are kept, the same command goes on"
        return f"{self.settings.url} {self._last_failure}; {kept}"

    def _wait_for_turn(self) -> None:
        if self.settings.per_minute is None:
            return
        with self._lock:
            start = max(self._next_call, time.monotonic())
            self._next_call = start + 60 / self.settings.per_minute
        time.sleep(max(0.0, start - time.monotonic()))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"--judge-url {url}: an address such as https://host/v1 is needed")
    if parts.username or parts.password or parts.query:
        raise UserError(f"--judge-url: must hold no name, password or key; the key belongs into {KEY}")


def _pause(error: Exception, attempt: int) -> float:
    """Return the seconds that a server asks for, else 0.5, 1, 2 ..., at most a minute."""
    response = getattr(error, "response", None)
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return min(60.0, float(asked) if asked.isdigit() else 0.5 * 2**attempt)
