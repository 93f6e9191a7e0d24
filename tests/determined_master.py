"""A stand-in for Determined's master, on this machine alone: it answers what a trial asks, and notes what it tells.

Requests and answers go through Determined's own API bindings, so that a field it does not know fails.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from determined.common.api import bindings

from tests.counting_server import serving


class Master:
    """What a trial has told, and what it is to be told.

    Attributes:
        metrics: (group, steps completed, means) of each report.
        checkpoints: what was reported of each, by its uuid.
        preempt_after: the step after which the trial is asked to stop.
        told: all else, as (method, path).
    """

    def __init__(self) -> None:
        self.metrics: list[tuple[str, int, dict[str, Any]]] = []
        self.checkpoints: dict[str, bindings.v1Checkpoint] = {}
        self.preempt_after: int | None = None
        self.told: list[tuple[str, str]] = []
        self.url = ""
        self._changed = threading.Condition()

    def answer(self, method: str, path: str, body: Any) -> Any:
        """Return the answer to a request, None where nothing is found."""
        self.told.append((method, path))
        match method, path.strip("/").split("/")[2:]:
            case "GET", ["allocations", _, "signals", "preemption"]:
                with self._changed:
                    self._changed.wait_for(self._preempts, timeout=1)
                return bindings.v1AllocationPreemptionSignalResponse(preempt=self._preempts()).to_json(True)
            case "POST", ["trials", trial, "metrics"]:
                request = bindings.v1ReportTrialMetricsRequest.from_json(body)
                assert request.metrics.trialId == int(trial)
                with self._changed:
                    report = request.group, request.metrics.stepsCompleted, request.metrics.metrics.avgMetrics
                    self.metrics.append(report)
                    self._changed.notify_all()
            case "GET", ["experiments", _, "searcher", "best_searcher_validation_metric"]:
                losses = [means["validation_loss"] for group, _, means in self.metrics if group == "validation"]
                if not losses:
                    return None
                return bindings.v1GetBestSearcherValidationMetricResponse(metric=min(losses)).to_json(True)
            case "POST", ["checkpoints"]:
                checkpoint = bindings.v1Checkpoint.from_json(body)
                self.checkpoints[checkpoint.uuid] = checkpoint
            case "GET", ["checkpoints", uuid]:
                return bindings.v1GetCheckpointResponse(checkpoint=self.checkpoints[uuid]).to_json(True)
            case "GET", ["trials", _]:
                return {"trial": {}}
            case (("POST" | "PATCH"), ["trials" | "allocations" | "runs", *_]):
                pass
            case _:
                raise NotImplementedError(f"{method} {path}")
        return {}

    def _preempts(self) -> bool:
        newest = max((steps for _, steps, _ in self.metrics), default=0)
        return self.preempt_after is not None and newest >= self.preempt_after


@contextmanager
def running_master() -> Iterator[Master]:
    """Serve a master on a free port of 127.0.0.1."""
    master, errors = Master(), []

    class Handler(BaseHTTPRequestHandler):
        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            try:
                answer = master.answer(self.command, urlsplit(self.path).path, json.loads(body) if body else None)
            except Exception as error:
                errors.append(error)
                self.send_error(501, repr(error))
                return
            content = json.dumps(answer).encode()
            self.send_response(200 if answer is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _handle

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    master.url = f"http://127.0.0.1:{server.server_port}"
    with serving(server):
        yield master
    assert not errors, errors
