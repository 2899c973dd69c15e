"""The service's REST API from Python: sync and thin."""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from types import TracebackType
from typing import Any, Self

import httpx2

Json = dict[str, Any]
POLL_SECONDS = 0.25
AGAIN_SECONDS = 2.0
"""Until a service that did not answer is asked again."""
LEASE_WAIT_SECONDS = 30.0
"""That the service keeps a request for a lease until there are enough groups."""
DEFAULT_SERVICE = "http://127.0.0.1:8700"
KEY_VARIABLE = "REFINERY_API_KEY"


class RefineryError(Exception):
    """The service refused or failed; `code` is stable."""

    def __init__(self, status: int, problem: Json) -> None:
        self.status = status
        self.code = str(problem.get("code", status))
        self.problem = problem
        super().__init__(f"{problem.get('detail', problem)} ({self.code})")

    def __reduce__(self) -> tuple[Any, ...]:
        return RefineryError, (self.status, self.problem)  # by what it is made of, for other processes


class Refinery:
    """One service. Use it as a context manager, or call `close`."""

    def __init__(
        self, url: str = DEFAULT_SERVICE, *, key: str | None = None, timeout: float = 600.0, patience: float = 0.0
    ) -> None:
        """The API key is that of ``REFINERY_API_KEY`` unless one is given. `patience` is how many seconds what can be
        asked again is, while nobody answers or the answer is to come again."""
        self.url = url.rstrip("/")
        self.headers = authorization(key)
        self._patience = patience
        self._http = httpx2.Client(base_url=self.url, headers=self.headers, timeout=timeout, follow_redirects=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        return self._call("GET", path, params={k: v for k, v in query.items() if v is not None})

    def post(self, path: str, body: Any, *, key: str | None = None, **query: Any) -> Any:
        """With an idempotency key, the same request again is the same thing and not another one."""
        headers = {} if key is None else {"idempotency-key": key}
        return self._call("POST", path, json=body, params=query, headers=headers)

    def stream(self, path: str, body: Any) -> Iterator[bytes]:
        """The answer to a POST bit by bit, for what need not fit in memory."""
        with self._reached(), self._http.stream("POST", path, json=body) as response:
            if response.status_code >= 400:
                response.read()
                raise RefineryError(response.status_code, _problem(response))
            yield from response.iter_raw()

    def delete(self, path: str, **query: Any) -> Any:
        return self._call("DELETE", path, params=query)

    def once(self, path: str, body: Any, *, key: str) -> Json:
        """The result of a job that is done once for a key; one that failed before is tried again."""
        for attempt in count():
            told = self.post(path, body, key=f"{key}-{attempt}" if attempt else key)
            job = self.get(f"/v1/jobs/{told['id']}")  # as it is by now: what was told stays what it was
            if job["state"] not in {"failed", "cancelled"}:
                break
        done = self.wait(job)
        if done["state"] == "cancelled":
            raise RefineryError(409, {"code": "cancelled", "detail": f"somebody cancelled job {done['id']}"})
        result: Json = done["result"]
        return result

    def add_prompts(self, rows: Iterable[Json], prompt_set: str) -> Json:
        """Rows ``{prompt, reference, verifier?, metadata?}``."""
        return self._ndjson("/v1/prompts", rows, {"set": prompt_set})

    def import_groups(self, rows: Iterable[Json], run: str, *, keep_good: bool = False) -> Json:
        """Native import rows; see `curation.recorded.GroupIn`. One bad row and nothing is stored, unless the good ones
        are to be kept."""
        return self._ndjson("/v1/rollouts/import", rows, {"run": run, "keep_good": keep_good})

    def lease(self, run: str, groups: int, *, key: str, **request: Any) -> Json:
        """So many groups of a run with their rows, for this trainer alone until `acknowledge` or `release`. The same
        key gives the same ones again, also after a crash of either side. With ``sample=True`` it waits until the
        service has sampled what is missing; without, raises RefineryError when there are too few."""
        patience = LEASE_WAIT_SECONDS if request.get("sample") else 0.0
        body = {"wait": patience, **request, "groups": groups}
        while True:
            try:
                lease: Json = self._call("POST", f"/v1/runs/{run}/leases", json=body, headers={"Idempotency-Key": key})
            except RefineryError as error:
                if error.code != "too_few_groups" or not request.get("sample"):
                    raise
                time.sleep(POLL_SECONDS)
            else:
                return lease

    def acknowledge(self, lease: Json) -> Json:
        """Trained on: this consumer is never given these groups again."""
        return self._about(lease, "ack")

    def release(self, lease: Json) -> Json:
        """Given back, for somebody else."""
        return self._about(lease, "release")

    def renew(self, lease: Json) -> Json:
        """Its seconds begin anew."""
        return self._about(lease, "renew")

    def _about(self, lease: Json, what: str) -> Json:
        told: Json = self._call("POST", f"/v1/leases/{lease['lease']}/{what}")
        return told

    def wait(self, job: Json, on_progress: Callable[[Json], None] = lambda _: None) -> Json:
        """The finished job. Raises RefineryError when it failed."""
        while job["state"] in {"queued", "running"}:
            on_progress(job)
            time.sleep(POLL_SECONDS)
            job = self.get(f"/v1/jobs/{job['id']}")
        on_progress(job)
        if job["state"] == "failed":
            raise RefineryError(500, {"code": job["result"]["error"], "detail": job["result"]["detail"]})
        return job

    def groups(self, run: str) -> Iterator[Json]:
        """Every group of a run, in the order they were stored."""
        return self._every("/v1/groups", run=run)

    def prompts(self, prompt_set: str) -> Iterator[Json]:
        """Every prompt of a set, in the order of their ids."""
        return self._every("/v1/prompts", set=prompt_set)

    def _every(self, path: str, **query: str) -> Iterator[Json]:
        """The items of a list, page after page."""
        cursor = None
        while True:
            page = self.get(path, **query, cursor=cursor, limit=1000)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def _ndjson(self, path: str, rows: Iterable[Json], query: Json) -> Json:
        body = "".join(json.dumps(row) + "\n" for row in rows)
        headers = {"content-type": "application/x-ndjson"}
        answer: Json = self._call("POST", path, content=body.encode(), params=query, headers=headers)
        return answer

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        harmless = method == "GET" or {"idempotency-key"} & {name.lower() for name in arguments.get("headers", ())}
        give_up = time.monotonic() + (self._patience if harmless or path.startswith("/v1/leases/") else 0.0)
        while True:
            try:
                with self._reached():
                    response = self._http.request(method, path, **arguments)
                if "retry-after" not in response.headers or time.monotonic() > give_up:
                    break
                told = response.headers["retry-after"]
                wanted = float(told) if told.isdecimal() else AGAIN_SECONDS  # proxies may tell a date
                time.sleep(min(wanted, max(0.0, give_up - time.monotonic())))
            except RefineryError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(AGAIN_SECONDS)
        if response.status_code >= 400:
            raise RefineryError(response.status_code, _problem(response))
        return response.json()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx2.ConnectError as error:
            detail = f"no service answers at {without_key(self.url)}: {error}; start one with `refinery serve`"
            raise RefineryError(0, {"code": "unreachable", "detail": detail}) from None
        except httpx2.TransportError as error:
            detail = f"the service at {without_key(self.url)} broke off: {error}"
            raise RefineryError(0, {"code": "broke_off", "detail": detail}) from None


def authorization(key: str | None = None) -> dict[str, str]:
    """The header that says who asks: the key, or that of ``REFINERY_API_KEY``; nothing where there is none."""
    sent = key or os.environ.get(KEY_VARIABLE)
    return {"authorization": f"Bearer {sent}"} if sent else {}


def without_key(url: str) -> str:
    """For people: a key may stand in a URL as its password."""
    return str(httpx2.URL(url).copy_with(userinfo=b""))


def _problem(response: httpx2.Response) -> Json:
    """Something in between may answer, too, as it likes."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    return problem if isinstance(problem, dict) else {"detail": response.text[:500]}
