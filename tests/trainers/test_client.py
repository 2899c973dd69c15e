"""The client, before a service that is busy, far away or not one of ours."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from trainers.client import Refinery, RefineryError

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], Answer]) -> Iterator[str]:
    """The URL of a server that answers everything so."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer(self)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_whoever_is_told_to_come_again_tomorrow_waits_no_longer_than_its_patience() -> None:
    began = time.monotonic()
    with (
        answering(lambda _: (503, {"Retry-After": "86400"}, b"{}")) as url,
        Refinery(url, patience=0.5) as refinery,
        pytest.raises(RefineryError),
    ):
        refinery.get("/v1/runs")

    assert 0.5 <= time.monotonic() - began < 10


@pytest.mark.parametrize("body", [b'["no", "problem", "document"]', b'"bad gateway"', b"<html>bad gateway</html>", b""])
def test_what_is_no_problem_document_is_told_as_it_is(body: bytes) -> None:
    with (
        answering(lambda _: (502, {}, body)) as url,
        Refinery(url) as refinery,
        pytest.raises(RefineryError) as failed,
    ):
        refinery.get("/v1/runs")

    assert (failed.value.code, failed.value.problem["detail"]) == ("502", body.decode())


def test_a_key_that_stands_in_the_url_is_in_no_message() -> None:
    with Refinery("http://x:rr_0_secret@127.0.0.1:1") as refinery, pytest.raises(RefineryError) as failed:
        refinery.get("/v1/runs")

    assert "http://127.0.0.1:1" in str(failed.value)
    assert "secret" not in str(failed.value)


def test_a_key_is_not_sent_to_where_a_service_redirects() -> None:
    told: list[str | None] = []

    def elsewhere(request: BaseHTTPRequestHandler) -> Answer:
        told.append(request.headers["Authorization"])
        return 200, {}, b"[]"

    with (
        answering(elsewhere) as other,
        answering(lambda _: (307, {"Location": f"{other}/v1/runs"}, b"")) as url,
        Refinery(url, key="rr_0_secret") as refinery,
    ):
        assert refinery.get("/v1/runs") == []

    assert told == [None]
