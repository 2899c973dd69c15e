"""The OpenAPI document is true: whoever knows it meets no answer that is not in it, and none that tells of a defect.

Schemathesis reads the document and asks: at the limits of every field and beyond them, at random, and in sequences that
take up what earlier answers told. ``OPENAPI_EXAMPLES=250`` asks so much more of the latter two, ``OPENAPI_SEED=1``
other things.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import schemathesis
from pydantic import ValidationError
from schemathesis import hooks
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.engine.recorder import ScenarioRecorder

from service.access import Keyring, Role
from service.api.errors import PROBLEM, STATUS, Problem
from service.api.gate import OPEN
from service.stages import Conflict
from tests.service.conftest import link_checkpoint, scripted_app
from tests.service.served import served
from tests.service.steps import finish, freeze, leased, prepare, sample

# Where a case is long, hypothesis would like to show less of it.
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "0"))
"""Of each operation, and as many sequences; 0 for what each test thinks enough."""
SEED = int(os.environ.get("OPENAPI_SEED", "0"))
HELD_TO = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ensure_resource_availability",
)
"""Not `positive_data_acceptance`: no schema says that a run has groups. Not `negative_data_rejection`: "8" and true are
taken for the numbers they resemble. Not `use_after_free`: a deleted dataset still tells why, a cancelled job how far it
came."""
LONGEST_WAIT = 0.1
ODD = {
    "integer": [-1, 0, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**40],
    "number": [-1.0, 1e-320, 1e308],
    "string": [
        "\0",
        "a\0b",
        "../../store.duckdb",
        "%00",
        "~nobody",
        "\u202e",
        "😀",
        "'; drop table runs; --",
        "x" * 5000,
    ],
}
"""Asked for now and then, wherever such a value may stand."""


@dataclass
class Explored:
    """What was asked and answered."""

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By operation and status; 0 where nothing was answered."""
    surprises: dict[tuple[object, ...], str] = field(default_factory=dict)
    """One of each kind, in words."""

    def add(self, recorder: ScenarioRecorder) -> None:
        for case_id, asked in recorder.interactions.items():
            operation = recorder.cases[case_id].value.operation.label
            status = asked.response.status_code if asked.response else 0
            self.statuses[operation, status] += 1
            if fault := asked.response and _no_problem(asked.response):
                self.surprises.setdefault((operation, status), f"{operation}: {status}, {fault}")
            for check in recorder.checks.get(case_id, []):
                if info := check.failure_info:
                    told = f"{operation}: {status}, {info.failure.title}\n{info.failure.message}\n{info.code_sample}"
                    self.surprises.setdefault((operation, status, info.failure.title), told)

    def told(self) -> str:
        return "\n\n".join(self.surprises.values())

    def never_answered_well(self) -> set[str]:
        well = {operation for operation, status in self.statuses if 200 <= status < 400}
        return {operation for operation, _ in self.statuses} - well

    def __str__(self) -> str:
        by_status = Counter[int]()
        for (_, status), count in self.statuses.items():
            by_status[status] += count
        return f"{by_status.total()} cases: {dict(sorted(by_status.items()))}"


def _no_problem(answer: schemathesis.Response) -> str | None:
    """What is wrong with a refusal."""
    if answer.status_code < 400 or answer.request.method == "HEAD":
        return None
    if answer.headers["content-type"] != [PROBLEM]:
        return f"as {answer.headers['content-type']}"
    try:
        told = Problem.model_validate_json(answer.content)
    except ValidationError as error:
        return str(error)
    return None if told.status == answer.status_code else f"says that it is {told.status}"


def _is_long(wait: Any) -> bool:
    try:
        return float(wait) > LONGEST_WAIT
    except (TypeError, ValueError, OverflowError):
        return False


@contextmanager
def impatient(key: str | None) -> Iterator[None]:
    """Nobody waits long for an answer, no job goes on after it, and nothing is fetched from the Hub."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    @schemathesis.hook
    def before_call(_: Any, case: schemathesis.Case, __: Any) -> None:
        for asked in (case.query, case.body):
            if isinstance(asked, dict) and _is_long(asked.get("wait")):
                asked["wait"] = LONGEST_WAIT

    @schemathesis.hook
    def after_call(_: Any, case: schemathesis.Case, answer: schemathesis.Response) -> None:
        if (case.method, answer.status_code) == ("POST", 202):
            httpx2.delete(f"{case.operation.base_url}/v1/jobs/{answer.json()['id']}", headers=headers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        try:
            yield
        finally:
            hooks.unregister_all()


class Filled(NamedTuple):
    """A service that has some of everything."""

    url: str
    keyring: Keyring
    known: dict[str, list[Any]]
    """By parameter: what there is, so that names and ids are not always those of nothing."""


def explore(service: Filled, *phases: str, examples: int, key: str | None = None, **checks: bool) -> Explored:
    """Asks for everything that the service says it has."""
    words = {**service.known, **ODD}
    enabled = dict.fromkeys(HELD_TO, True) | checks
    config: dict[str, Any] = {
        "seed": SEED,
        "continue-on-failure": True,
        "request-timeout": 60,
        "auth": {"openapi": {"key": {"bearer": key}}} if key else {},
        "dictionaries": {name: {"values": values} for name, values in words.items()},
        "parameters": {name: {"dictionary": name, "probability": 0.5} for name in service.known},
        "generation": {
            "max-examples": EXAMPLES or examples,
            "database": "none",
            "no-shrink": True,
            "dictionaries": {kind: {"dictionary": kind, "probability": 0.1} for kind in ODD},
        },
        "phases": {"enabled": False} | {phase: {"enabled": True} for phase in phases},
        "checks": {"enabled": False} | {name: {"enabled": on} for name, on in enabled.items()},
        "operations": [{"include-name": "GET /readyz", "checks": {"not_a_server_error": {"enabled": False}}}],
        "warnings": False,
    }
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json", config=SchemathesisConfig.from_dict(config))
    found = Explored()
    with impatient(key):
        for event in from_schema(schema).execute():
            match event:
                case events.ScenarioFinished(recorder=recorder):
                    found.add(recorder)
                case events.NonFatalError(label=label, info=info):
                    found.surprises.setdefault((label, info.title), f"{label}: {info.title}: {info.message}")
                case events.FatalError(exception=exception):
                    raise exception
    print(found)
    return found


@contextmanager
def filled(folder: Path) -> Iterator[Filled]:
    data, checkpoint = folder / "data", link_checkpoint(folder / "checkpoint")
    with served(scripted_app(data, checkpoint)) as url, httpx2.Client(base_url=url, timeout=60) as client:
        keyring = Keyring(data)
        yield Filled(url, keyring, fill(client, checkpoint))
        if keyring.keys is not None:
            client.headers["authorization"] = f"Bearer {keyring.add('auditor', Role.ADMIN)[1]}"
        jobs = client.get("/v1/jobs").json()
        assert [job for job in jobs if (job["result"] or {}).get("error") == "internal"] == []


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """Without keys."""
    with filled(tmp_path_factory.mktemp("open")) as service:
        yield service


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """It has keys as soon as one is added, and from then on."""
    with filled(tmp_path_factory.mktemp("locked")) as service:
        yield service


def fill(client: Any, checkpoint: Path) -> dict[str, list[Any]]:
    """Returns what there is, by parameter."""
    prepare(client)
    sample(client, passes=2)
    published = client.post("/v1/policies/policy/versions", json={"checkpoint": str(checkpoint)}).json()
    finish(client, published)
    sample(client, passes=1)
    for seed in range(3):
        freeze(client, seed=seed, test_share=0.5)
        freeze(client, "gone", seed=seed)
    leases = [leased(client, 1, consumer=str(number)) for number in range(12)]
    client.post(f"/v1/leases/{leases[0]['lease']}/ack")
    return {
        "path.run": ["r"],
        "query.run": ["r", "recorded"],
        "body.run": ["r"],
        "body.policy": ["policy"],
        "body.prompt_set": ["s"],
        "body.checkpoint": [str(checkpoint)],
        "body.recipe.runs[*]": ["r"],
        "body.[*].verifier": ["exact"],
        "body.sql": ["from groups", "select 1"],
        "query.q": ["from groups", "select $a, $b"],
        "query.set": ["s"],
        "path.name": ["policy", "d", "gone"],
        "path.version": [1, 2, 3, "latest"],
        "path.split": ["train", "test"],
        "path.file": ["train.parquet", "test.jsonl", "left_out.parquet"],
        "header.range": ["bytes=0-3", "bytes=0-0,5-9", "bytes=3-1", "bytes=999999999-", "lines=1-2"],
        "query.other": ["d@1", "d@2"],
        "path.prompt_id": [prompt["id"] for prompt in client.get("/v1/prompts", params={"limit": 3}).json()["items"]],
        "query.prompt_id": [prompt["id"] for prompt in client.get("/v1/prompts", params={"limit": 3}).json()["items"]],
        "path.group_id": [group["id"] for group in client.get("/v1/groups", params={"limit": 3}).json()["items"]],
        "path.job_id": [job["id"] for job in client.get("/v1/jobs").json()],
        "path.lease_id": [lease["lease"] for lease in leases],
    }


def test_the_operator_meets_no_surprise(service: Filled) -> None:
    found = explore(service, "coverage", "fuzzing", "stateful", examples=20)

    assert found.told() == ""
    assert len(found.never_answered_well()) <= 6, found.never_answered_well()  # to push takes an HF_TOKEN, say


@pytest.mark.parametrize("key", [None, "rr_00000000_nonsense"], ids=["no key", "a wrong key"])
def test_whoever_has_no_key_is_told_nothing_but_that(locked: Filled, key: str | None) -> None:
    with suppress(Conflict):  # it has one already
        locked.keyring.add("operator", Role.ADMIN)

    found = explore(locked, "fuzzing", examples=3, key=key)

    assert found.told() == ""
    closed = {status for operation, status in found.statuses if operation.partition(" ")[2] not in OPEN}
    assert closed == {401}


def test_a_key_that_may_only_read_changes_nothing_and_meets_no_surprise(locked: Filled) -> None:
    _, key = locked.keyring.add("reader", Role.READ)

    found = explore(locked, "fuzzing", "stateful", examples=5, key=key, ignored_auth=True)

    assert found.told() == ""
    assert {status for _, status in found.statuses} >= {200, 401, 403, 404, 422}
    assert {status for _, status in found.statuses}.isdisjoint({201, 202})


def test_a_key_with_limits_meets_no_surprise(locked: Filled) -> None:
    _, key = locked.keyring.add("writer", Role.WRITE, ("r*", "d", "policy"))

    found = explore(locked, "fuzzing", "stateful", examples=5, key=key, ignored_auth=True)

    assert found.told() == ""
    assert {status for _, status in found.statuses} >= {200, 201, 202, 401, 403, 404, 422}


def test_the_document_has_every_status_of_the_table_as_a_problem() -> None:
    operations = [
        operation
        for path in scripted_app(Path(), Path()).openapi()["paths"].values()
        for method, operation in path.items()
        if method != "head"
    ]

    refusals = {
        int(status): list(answer["content"])
        for operation in operations
        for status, answer in operation["responses"].items()
        if status >= "400"
    }
    assert refusals == {status: [PROBLEM] for status in STATUS.values()}


def test_the_document_asks_for_a_key_wherever_the_service_does() -> None:
    paths = scripted_app(Path(), Path()).openapi()["paths"]

    asked = {path for path, methods in paths.items() for operation in methods.values() if operation["security"]}

    assert paths.keys() - asked == OPEN & paths.keys()
