"""Environments of the `verifiers` library judge completions by their own rewards; what they hide is not hidden here."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curation.records import Outcome, Prompt, Verdict
from service.parts import panel_of_settings
from service.settings import Settings
from service.verifiers.declared import Declared, DeclaredKind
from tests.service.conftest import OpenService
from tests.service.steps import sample

HERE = Path(__file__).parents[1] / "environments"
CLASSIC = Path(__file__).parents[2] / ".engines" / "verifiers-classic"
"""The last release of the library that has its classic form, before the one that is installed."""
ROW = {"info": {"ending": "."}}
FORMS = ["sums_taskset", "sums_classic"]


@pytest.fixture
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An environment with one reward for the sum and half a one for the form, where the workers can import it."""
    monkeypatch.syspath_prepend(HERE)
    name: str = request.param
    if name in {"sums_classic", "library_rubrics"}:
        if not CLASSIC.exists():
            pytest.skip("the classic release is not there; `make engines` installs it")
        monkeypatch.syspath_prepend(CLASSIC)
    return name


def judged(
    environment: str, verifier: str, *texts: str, row: dict[str, Any], reference: str = "4", **arguments: Any
) -> list[Verdict]:
    declared = Declared(name="sums", kind=DeclaredKind.ENVIRONMENT, target=environment, arguments=arguments)

    async def ask() -> list[Verdict]:
        panel = panel_of_settings(Settings(verifier=(declared,), verifier_workers=1))
        try:
            return await panel.verify(Prompt("p", "2 + 2 =", reference, verifier, {"task": row}), texts)
        finally:
            await panel.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_a_completion_gets_the_weighted_sum_of_the_environments_rewards(form: str) -> None:
    verdicts = judged(f"somebody/{form.replace('_', '-')}@0.1", "sums?high=1.5", "4.", "4", "5.", "5", row=ROW)

    assert [v.detail for v in verdicts] == ["1.5", "1", "0.5", "0"]
    assert [v.reward for v in verdicts] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert verdicts[0].verifier == "sums@1?high=1.5"


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_a_reward_that_raises_is_no_zero(form: str) -> None:
    [verdict] = judged(form, "sums?high=1.5", "boom", row=ROW)

    assert (verdict.outcome, verdict.reward) == (Outcome.ERROR, None)
    assert "RuntimeError: boom" in verdict.detail


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_a_prompt_may_carry_the_environments_own_row(form: str) -> None:
    [verdict] = judged(form, "sums?high=1.5", "7.", row=ROW | {"prompt": "3 + 4 =", "answer": "7"})

    assert verdict.reward == 1.0


@pytest.mark.parametrize(
    ("form", "arguments"),
    [("sums_taskset", {"task": {"ending": "!"}}), ("sums_classic", {"ending": "!"})],
    indirect=["form"],
)
def test_an_environment_is_loaded_with_the_operators_arguments(form: str, arguments: dict[str, Any]) -> None:
    verdicts = judged(form, "sums?high=1.5", "4!", "4.", row={"info": {"ending": "!"}}, **arguments)

    assert [v.detail for v in verdicts] == ["1.5", "0"], verdicts


@pytest.mark.parametrize("form", ["library_rubrics"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "verifier", "rewards"),
    [
        pytest.param("math", "sums", [0.0, 0.0, 1.0], id="a pool of processes inside a rubric"),
        pytest.param("nested", "sums", [1.0, 1.0, 1.0], id="groups in groups"),
        pytest.param("notes", "sums", [1.0, 0.0, 0.0], id="a function without weight that others rely on"),
        pytest.param("strict", "sums", [1.0, 0.0, 0.0], id="a rubric that scores in its own way"),
        pytest.param("info", "sums", [1.0, 1.0, 1.0], id="info as JSON"),
        pytest.param("rounded", "sums?high=1.2", [1.0, 1.0, 1.0], id="weights that add up with an ulp too much"),
    ],
)
def test_a_rubric_scores_as_it_does_in_the_library(form: str, kind: str, verifier: str, rewards: list[float]) -> None:
    verdicts = judged(form, verifier, "4", "5", r"\boxed{4}", row={"info": '{"level": 3}'}, kind=kind)

    assert [v.reward for v in verdicts] == rewards, verdicts


@pytest.mark.parametrize(
    ("form", "arguments", "reason"),
    [
        ("library_rubrics", {"kind": "prepared"}, "prepares its tasks"),
        ("sums_classic", {"groups": True}, "rewards whole groups"),
        ("sums_classic", {"turns": 2}, "takes more than one turn"),
        ("tools_taskset", {}, "uses tools and prepares its tasks and has a reward that needs a runtime"),
    ],
    indirect=["form"],
)
def test_an_environment_that_needs_more_than_a_completion_is_refused(
    form: str, arguments: dict[str, Any], reason: str
) -> None:
    [verdict] = judged(form, "sums", "4.", row={}, **arguments)

    assert (verdict.outcome, verdict.reward) == (Outcome.ERROR, None)
    assert verdict.detail.endswith(reason), verdict


@pytest.mark.parametrize("form", ["defaults_taskset"], indirect=True)
def test_a_field_that_has_its_default_is_not_lost_on_the_way(form: str) -> None:
    [prompt, *_] = exported(form)
    [verdict] = judged(form, "sums?high=1.5", "yes.", row=prompt["metadata"]["task"], reference="")

    assert (prompt["reference"], verdict.reward) == ("", 1.0)


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_the_prompts_of_an_environment_make_a_run_that_it_judges(form: str, open_service: OpenService) -> None:
    prompts = exported(form)
    declared = Declared(name="sums", kind=DeclaredKind.ENVIRONMENT, target=form)

    def script(prompt: str, seed: int, version: int) -> str:
        return "2." if seed % 2 else "x"

    with open_service(script, verifier=(declared,)) as client:
        assert client.post("/v1/prompts?set=s", json=prompts).json()["added"] == 3
        client.post("/v1/runs", json={"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"n": 8}})
        sample(client, passes=1)
        groups = client.get("/v1/groups?run=r").json()["items"]

        text_of = {p["id"]: p["prompt"] for p in client.get("/v1/prompts?set=s").json()["items"]}

    best = {text_of[group["prompt_id"]].split("\n\n")[-1]: max(group["rewards"]) for group in groups}
    assert best == {"0 + 0 =": pytest.approx(1 / 3), "1 + 1 =": 1.0, "2 + 2 =": pytest.approx(1 / 3)}


def exported(environment: str) -> list[dict[str, Any]]:
    """Its first three prompts, from a process of their own: this one cannot hold two releases of the library."""
    script = (
        "import json, trainers.environments as e;"
        f"print(json.dumps(list(e.prompts_of({environment!r}, verifier='sums?high=1.5', take=3, arguments={{}}))))"
    )
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", script], env=os.environ | paths, check=True, capture_output=True)
    prompts: list[dict[str, Any]] = json.loads(said.stdout)
    return prompts
