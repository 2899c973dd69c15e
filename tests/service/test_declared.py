"""Verifiers that the operator declares: reward functions, reward models and servers."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.records import Outcome, Prompt, Verdict
from service.parts import panel_of_settings
from service.settings import Settings
from service.stages import Conflict
from service.verifiers import canaries, remote
from service.verifiers.declared import Declared, DeclaredKind, parse_declared
from service.verifiers.remote import RETRY_PAUSE
from service.verifiers.rewards import RewardOptions, logistic, rewarded
from tests.service.conftest import OpenService
from tests.service.steps import finish

HERE = "tests.service.rules_for_tests"


def judged(declared: str, verifier: str, *texts: str, prompt: str = "?", reference: str = "4", **metadata: Any) -> Any:
    settings = Settings(verifier=(parse_declared(declared),), verifier_workers=1)

    async def ask() -> list[Verdict]:
        panel = panel_of_settings(settings)
        try:
            return await panel.verify(Prompt("p", prompt, reference, verifier, metadata), texts)
        finally:
            await panel.close()

    return asyncio.run(ask())


def told(verdicts: list[Verdict]) -> list[tuple[Outcome, float | None]]:
    return [(v.outcome, v.reward) for v in verdicts]


# ---- reward functions


def test_a_reward_function_sees_prompt_completion_and_columns() -> None:
    verdicts = judged(f"f=function:{HERE}:trl_style", "f", "4", "5", color="red")

    assert told(verdicts) == [(Outcome.SCORED, 1.0), (Outcome.SCORED, 0.0)]
    assert verdicts[0].verifier == "f@1"


def test_a_reward_function_may_take_messages_and_have_a_range_of_its_own() -> None:
    verdicts = judged(f"f@3=function:{HERE}:trl_chat", "f?chat=true&low=-1&high=3", "four")

    assert [(v.outcome, v.reward, v.verifier, v.detail) for v in verdicts] == [
        (Outcome.SCORED, 0.5, "f@3?chat=true&high=3&low=-1", "1")
    ]


def test_trls_own_reward_function_works_as_it_is() -> None:
    pytest.importorskip("trl")
    verdicts = judged(
        "f=function:trl.rewards:accuracy_reward", "f?chat=true", r"so \boxed{4}", r"so \boxed{5}", reference="$4$"
    )

    assert told(verdicts) == [(Outcome.SCORED, 1.0), (Outcome.SCORED, 0.0)], verdicts


@pytest.mark.parametrize(
    ("function", "outcome", "detail"),
    [
        (f"{HERE}:trl_none", Outcome.BAD_REFERENCE, "no reward for this prompt"),
        (f"{HERE}:trl_raises", Outcome.ERROR, "ZeroDivisionError"),
        (f"{HERE}:trl_large", Outcome.ERROR, "the verifier gave the reward 7.0"),
        (f"{HERE}:trl_huge", Outcome.ERROR, "the verifier gave the reward 1e+308"),
        (f"{HERE}:trl_nan", Outcome.ERROR, "the verifier gave the reward nan"),
        (f"{HERE}:trl_text", Outcome.ERROR, "'1', which is no number"),
        (f"{HERE}:trl_many", Outcome.ERROR, "ValueError"),
        (f"{HERE}:trl_nothing", Outcome.ERROR, "TypeError"),
        ("nowhere:f", Outcome.ERROR, "No module named 'nowhere'"),
    ],
)
def test_a_reward_function_that_fails_gives_no_reward(function: str, outcome: Outcome, detail: str) -> None:
    [verdict] = judged(f"f=function:{function}", "f", "4")

    assert (verdict.outcome, verdict.reward) == (outcome, None)
    assert detail in verdict.detail


def test_what_no_reward_function_says_is_no_group_to_learn_from(open_service: OpenService) -> None:
    """Half of the prompts have a verifier that is well."""
    liars = ("raises", "none", "large", "huge", "nan", "text", "many", "nothing")
    declared = tuple(parse_declared(f"{liar}=function:{HERE}:trl_{liar}") for liar in liars)
    prompts = [{"prompt": f"mixed {n}", "reference": "4", "verifier": name} for n in range(3) for name in liars]
    good = [{"prompt": f"mixed {n}", "reference": "4", "verifier": "numeric"} for n in range(24)]
    with open_service(verifier=declared) as client:
        assert client.post("/v1/prompts?set=s", json=prompts + good).status_code == 201
        run = {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"n": 8}, "retain": "all"}
        client.post("/v1/runs", json=run)
        job = finish(client, client.post("/v1/runs/r/rollouts", json={"passes": 1}).json())
        groups = client.get("/v1/groups?run=r&limit=100").json()["items"]
        frozen = client.post("/v1/datasets", json={"name": "d", "recipe": {"runs": ["r"]}}).json()
        rows = client.get("/v1/datasets/d@1/rows").json()["rows"]

    funnel = job["result"]["funnel"]
    assert (funnel["unscored"], funnel["failed"]) == (24, 0)
    assert funnel["outcomes"]["error"] + funnel["outcomes"]["bad_reference"] == 24 * 8
    assert sorted(len(group["rewards"]) for group in groups) == [0] * 24 + [8] * 24
    assert (len(rows), frozen["manifest"]["verifiers"]) == (funnel["informative"], {"numeric@1": funnel["informative"]})


def test_parts_are_weighted_and_one_that_fails_takes_the_reward() -> None:
    declared = f"f=function:{HERE}:trl_style"
    both = judged(declared, "3*numeric+1*f", "4", "5", "four")
    broken = judged(f"f=function:{HERE}:trl_raises", "3*numeric+1*f", "4")

    assert told(both) == [(Outcome.SCORED, 1.0), (Outcome.SCORED, 0.0), (Outcome.SCORED, 0.0)]
    assert both[0].verifier == "3*numeric@1+1*f@1"
    assert told(broken) == [(Outcome.ERROR, None)]


# ---- reward models


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_reward_keeps_the_order_of_the_scores(one: float, other: float) -> None:
    low, high = sorted((one, other))

    assert 0.0 <= logistic(low) <= logistic(high) <= 1.0


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_no_reward(score: float) -> None:
    assert rewarded(score, "text", RewardOptions()).outcome is Outcome.ERROR


def test_length_is_only_normalised_when_asked_for() -> None:
    plain, normal = RewardOptions(), RewardOptions(per_character=True)

    assert rewarded(8.0, "x" * 4, plain).reward == logistic(8.0)
    assert rewarded(8.0, "x" * 4, normal).reward == logistic(2.0)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_reward_model(tmp_path_factory.mktemp("reward-model"))


TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def random_reward_model(folder: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForSequenceClassification

    from service.checkpoints import EMBEDDED

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.chat_template = TEMPLATE
    config = Qwen2Config.from_pretrained(EMBEDDED, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model = Qwen2ForSequenceClassification(config)
    with torch.no_grad():  # scores that differ
        model.score.weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def score_of(folder: Path, text: str) -> float:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return float(model(**AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")).logits[0, 0])


def test_a_classifier_scores_prompt_and_completion(reward_model: Path) -> None:
    texts = ["yes", "no, not at all"]

    verdicts = judged(f"rm=classifier:{reward_model}", "rm", *texts, prompt="Is it? ")

    expected = [logistic(score_of(reward_model, f"Is it? {text}")) for text in texts]
    assert [v.reward for v in verdicts] == pytest.approx(expected)
    assert verdicts[0].reward != verdicts[1].reward


def test_a_classifier_may_read_a_conversation(reward_model: Path) -> None:
    [verdict] = judged(f"rm=classifier:{reward_model}", "rm?chat=true", "yes", prompt="Is it?")

    assert float(verdict.detail) == pytest.approx(score_of(reward_model, "user: Is it?\nassistant: yes\n"), abs=1e-4)


def test_a_model_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    [verdict] = judged(f"rm=classifier:{tmp_path / 'nothing'}", "rm", "yes")

    assert verdict.outcome is Outcome.ERROR


# ---- servers


@contextmanager
def server(*answers: Any) -> Iterator[tuple[str, list[Any]]]:
    """Answers requests in turn (the last answer again and again): a status, JSON, or a function of the request's body
    that gives either. Keeps what it was sent."""
    sent: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = answers[min(len(sent), len(answers) - 1)]
            sent.append((self.path, body))
            if callable(answer):
                answer = answer(body)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(b"" if isinstance(answer, int) else json.dumps(answer).encode())

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_port}", sent
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def test_a_nemo_gym_server_gets_its_own_fields_and_a_response() -> None:
    with server({"reward": 1.0, "extracted_answer": "4"}) as (url, sent):
        verdicts = judged(f"gym=nemo_gym:{url}", "gym", "four", prompt="2 + 2?", uuid="u1")

    [(path, body)] = sent
    assert (path, body["expected_answer"], body["uuid"]) == ("/verify", "4", "u1")
    assert body["responses_create_params"]["input"][0]["content"] == "2 + 2?"
    assert body["response"]["output"][0]["content"][0]["text"] == "four"
    assert [(v.outcome, v.reward, v.detail) for v in verdicts] == [(Outcome.SCORED, 1.0, "4")]


@pytest.mark.parametrize(
    ("kind", "route", "asked", "answer"),
    [
        (
            "vllm_classify",
            "/classify",
            {"input": ["a b", "a c"], "use_activation": False},
            {"data": [{"probs": [2.0]}, {"probs": [-1.0]}]},
        ),
        (
            "vllm_pooling",
            "/pooling",
            {"input": ["a b", "a c"], "task": "classify", "use_activation": False},
            {"data": [{"data": [2.0]}, {"data": [[-1.0]]}]},
        ),
        (
            "vllm_score",
            "/score",
            {"text_1": "a ", "text_2": ["b", "c"], "use_activation": False},
            {"data": [{"score": 2.0}, {"score": -1.0}]},
        ),
        ("sglang", "/classify", {"text": ["a b", "a c"]}, [{"embedding": [2.0]}, {"embedding": [-1.0]}]),
    ],
)
def test_a_reward_server_is_asked_once_for_a_group(kind: str, route: str, asked: Any, answer: Any) -> None:
    with server(answer) as (url, sent):
        verdicts = judged(f"rm={kind}:{url}", "rm", "b", "c", prompt="a ")

    assert sent == [(route, asked)]
    assert [(v.reward, v.detail) for v in verdicts] == [(logistic(2.0), "2"), (logistic(-1.0), "-1")]


def test_a_reward_server_may_be_asked_with_messages() -> None:
    with server({"data": [{"probs": [2.0]}]}) as (url, sent):
        verdicts = judged(f"rm=vllm_classify:{url}", "rm?chat=true", "b", "c", prompt="a")

    asked = [[message["content"] for message in body["messages"]] for _, body in sent]
    assert sorted(asked) == [["a", "b"], ["a", "c"]]
    assert told(verdicts) == [(Outcome.SCORED, logistic(2.0))] * 2


@pytest.mark.parametrize("kind", ["sglang", "nemo_gym"])
def test_a_completion_that_the_server_cannot_take_costs_its_own_verdict_only(kind: str) -> None:
    def answer(body: Any) -> Any:
        if "too long" in json.dumps(body):
            return 400
        return {"reward": 0.5} if kind == "nemo_gym" else [{"embedding": [0.0]} for _ in body["text"]]

    with server(answer) as (url, _):
        verdicts = judged(f"v={kind}:{url}", "v", "a", "too long", "b")

    assert told(verdicts) == [(Outcome.SCORED, 0.5), (Outcome.ERROR, None), (Outcome.SCORED, 0.5)]


def test_a_server_that_fails_once_is_asked_again() -> None:
    with server(500, [{"embedding": [0.0]}]) as (url, sent):
        [verdict] = judged(f"rm=sglang:{url}", "rm", "b")

    assert (len(sent), verdict.reward) == (2, 0.5)
    assert RETRY_PAUSE > 0


def test_an_answer_without_end_is_an_error_and_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(remote, "RETRY_PAUSE", 0.0)
    with server([{"embedding": [0.0], "more": "x" * (2 << 20)}]) as (url, _):
        [verdict] = judged(f"rm=sglang:{url}", "rm", "b")

    assert (verdict.outcome, verdict.reward) == (Outcome.ERROR, None)
    assert "more than 1 MiB" in verdict.detail


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (500, "500"),
        ({"data": []}, "0 scores for 1"),
        ({"nothing": 1}, "something else: KeyError"),
        ([{"nothing": 1}], "something else: ValueError"),
        ([{"embedding": [1.0, 2.0]}], "something else: ValueError"),
        ([{"embedding": [float("nan")]}], "the score nan"),
        ([{"embedding": ["1"]}], "something else: TypeError"),
        ("t", "something else: ValueError"),
    ],
)
def test_an_answer_that_is_none_is_an_error_and_never_a_zero(answer: Any, said: str) -> None:
    with server(answer) as (url, _):
        [verdict] = judged(f"rm=sglang:{url}", "rm", "b")

    assert (verdict.outcome, verdict.reward) == (Outcome.ERROR, None)
    assert said in verdict.detail


def test_what_a_server_says_can_be_stored() -> None:
    with server({"reward": 1.0, "extracted_answer": chr(0xD800)}) as (url, _):
        [verdict] = judged(f"gym=nemo_gym:{url}", "gym", "four")

    assert verdict.reward == 1.0
    assert verdict.detail.encode()


def test_a_server_that_is_not_there_is_an_error() -> None:
    [verdict] = judged("rm=sglang:http://127.0.0.1:9", "rm", "b")

    assert (verdict.outcome, verdict.reward) == (Outcome.ERROR, None)
    assert "127.0.0.1:9" in verdict.detail


# ---- declarations


@pytest.mark.parametrize(
    "text", ["", "x", "x=function", "x=magic:y", "=function:a:b", "a b=function:c:d", "x@0=function:a:b"]
)
def test_a_declaration_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_declared(text)


def test_a_declaration_does_not_replace_what_is_there() -> None:
    settings = Settings(verifier=(parse_declared("math=function:a:b"),))

    with pytest.raises(Conflict, match="math"):
        panel_of_settings(settings)


def test_a_declaration_in_the_file_may_have_a_canary_and_is_watched(tmp_path: Path) -> None:
    (tmp_path / "refinery.toml").write_text(f"""
        [[verifier]]
        name = "sums"
        kind = "function"
        target = "{HERE}:trl_style"
        canary = {{ prompt = "?", right = "4", wrong = "5", reference = "4", options = {{ high = 2.0 }} }}
    """)

    async def trial() -> tuple[str, bool]:
        with chdir(tmp_path):
            panel = panel_of_settings(Settings(verifier_workers=1))
        try:
            await panel.verify(Prompt("p", "?", "4", "sums"), ["4"])
            [(name, canary)] = panel.canaries().items()
            backwards = canary.model_copy(update={"right": canary.wrong, "wrong": canary.right})
            assert "0 for '5', which is right, and 0.5 for '4'" in (await canaries._trial(panel, name, backwards))[0]
            return await canaries._trial(panel, name, canary)
        finally:
            await panel.close()

    assert asyncio.run(trial()) == ("", False)


def test_only_an_environment_takes_arguments() -> None:
    with pytest.raises(ValueError, match="only an environment"):
        Declared(name="f", kind=DeclaredKind.FUNCTION, target="a:b", arguments={"x": 1})


def test_verifiable_and_other_prompts_share_a_run_and_a_dataset(open_service: OpenService) -> None:
    def answer(prompt: str, seed: int, version: int) -> str:
        return "<answer>4</answer>" if seed % 2 else "<answer>five</answer>"

    prompts = [
        {"prompt": "2 + 2?", "reference": "4", "verifier": "exact"},
        {"prompt": "Be brief.", "verifier": "brevity"},
    ]
    with open_service(answer, verifier=(parse_declared(f"brevity=function:{HERE}:brevity"),)) as client:
        assert client.post("/v1/prompts?set=s", json=prompts).status_code == 201
        run = {"name": "r", "policy": "policy", "prompt_set": "s", "sampling": {"n": 8}}
        client.post("/v1/runs", json=run)
        finish(client, client.post("/v1/runs/r/rollouts", json={"passes": 1}).json())
        recipe = {"runs": ["r"], "pairs": {"kind": "best_with_worst"}}
        frozen = client.post("/v1/datasets", json={"name": "d", "recipe": recipe}).json()
        rows = client.get("/v1/datasets/d@1/rows").json()["rows"]

    assert frozen["manifest"]["verifiers"] == {"brevity@1": 1, "exact@1": 1}
    assert [(row["row"]["chosen"], row["row"]["rejected"]) for row in rows] == [
        ("<answer>4</answer>", "<answer>five</answer>")
    ] * 2
