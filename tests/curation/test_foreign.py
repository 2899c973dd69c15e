"""Rows of other systems' rollout files become groups; nothing is guessed, and nothing gets lost or doubled."""

import contextlib
import gzip
import json
from collections import Counter
from math import nan
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.choice import reason_of
from curation.conversations import as_messages, asked_and_answered, text_of
from curation.foreign import FieldMapping, Format, MappingChange, group_of, joined, mapping_of
from curation.recorded import RECORDED, GroupIn, Numbered, RolloutIn, merged

DATA = Path(__file__).parents[3] / "shared/data"
ATROPOS = DATA / "rollouts_atropos_rubiks/rubiks_process_results_32.jsonl.gz"
NEMO_GYM = DATA / "rollouts_nemo_gym_examples"


def groups_of(rows: list[Any], format: Format, **change: Any) -> list[GroupIn]:
    mapping = mapping_of(format, MappingChange(**change))
    made = (Numbered((n,), group_of(row, mapping)) for n, row in enumerate(rows))
    return [one.group for one in joined(made, mapping)]


def of_verl(step: int, prompt: str, output: str, score: float) -> dict[str, Any]:
    return {"input": prompt, "output": output, "gts": "4", "score": score, "step": step, "acc": score == 1}


rollouts = st.builds(
    GroupIn,
    prompt=st.sampled_from("ab"),
    policy_version=st.integers(0, 2),
    rollouts=st.tuples(st.builds(RolloutIn, text=st.text(max_size=3))),
)


@given(st.lists(rollouts, max_size=20))
def test_merging_keeps_every_rollout_once_and_in_the_order_of_its_group(rows: list[GroupIn]) -> None:
    whole = merged(Numbered((n,), row) for n, row in enumerate(rows))

    asked = [(one.group.prompt, one.group.policy_version) for one in whole]
    assert len(set(asked)) == len(asked)
    for one, question in zip(whole, asked, strict=True):
        of_it = [n for n, row in enumerate(rows) if (row.prompt, row.policy_version) == question]
        assert list(one.rows) == of_it
        assert list(one.group.rollouts) == [rows[n].rollouts[0] for n in of_it]
    assert sum(len(one.rows) for one in whole) == len(rows)


@given(st.floats(-3, 5), st.floats(-2, 0), st.floats(0.5, 4))
def test_a_label_becomes_a_reward_between_0_and_1_or_is_refused(label: float, low: float, high: float) -> None:
    row = of_verl(1, "2+2?", "4", label)
    if low <= label <= high:
        [group] = groups_of([row], Format.VERL, lowest=low, highest=high)
        reward = group.rollouts[0].reward
        assert reward is not None
        assert 0 <= reward <= 1
        assert low + reward * (high - low) == pytest.approx(label)
    else:
        with pytest.raises(ValueError, match="is not between"):
            groups_of([row], Format.VERL, lowest=low, highest=high)


def test_interleaved_rows_of_a_verl_dump_are_groups_by_step_and_prompt() -> None:
    rows = [of_verl(step, prompt, f"{i}", i % 2) for i in range(4) for step in (1, 2) for prompt in ("2+2?", "1+3?")]

    groups = groups_of(rows, Format.VERL)

    assert [(g.policy_version, g.prompt) for g in groups] == [(1, "2+2?"), (1, "1+3?"), (2, "2+2?"), (2, "1+3?")]
    for group in groups:
        assert [(r.text, r.reward) for r in group.rollouts] == [("0", 0.0), ("1", 1.0), ("2", 0.0), ("3", 1.0)]
        assert (group.reference, group.verifier) == ("4", RECORDED)


def test_results_of_the_verifiers_library_may_be_conversations() -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    rows = [
        {"example_id": 0, "prompt": asked, "completion": [{"role": "assistant", "content": text}], "answer": "4"}
        | {"reward": reward, "task": "sums", "metrics": {}}
        for text, reward in (("4", 1.0), ("5", 0.0))
    ]

    [group] = groups_of(rows, Format.PRIME_RL, verifier="math")

    assert group.prompt == "system: Be brief.\n\nuser: 2+2?"
    assert as_messages(group.prompt, group.metadata) == asked
    assert [r.text for r in group.rollouts] == ["4", "5"]
    assert (group.verifier, group.reference) == ("math", "4")


def test_completion_logs_of_trl_name_their_reward_by_being_the_only_number() -> None:
    row = {"step": 10, "prompt": "2+2?", "completion": "4", "accuracy_reward": 1.0, "advantage": 0.7}

    [group] = groups_of([row, row | {"completion": "5", "accuracy_reward": 0.0}], Format.TRL)

    assert (group.policy_version, [r.reward for r in group.rollouts]) == (10, [1.0, 0.0])
    with pytest.raises(ValueError, match="which of accuracy_reward, format_reward is the label"):
        groups_of([row | {"format_reward": 0.5}], Format.TRL)
    with pytest.raises(ValueError, match="which of accuracy_reward, format_reward is the label"):
        groups_of([row | {"format_reward": 0.5, "accuracy_reward": None}], Format.TRL)
    [unlabelled] = groups_of([row | {"accuracy_reward": nan}], Format.TRL)
    assert unlabelled.rollouts[0].reward is None
    [named] = groups_of([row | {"format_reward": 0.5}], Format.TRL, label="format_reward")
    assert named.rollouts[0].reward == 0.5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"scores": [1.0]}, "scores: a list of 2 was expected"),
        ({"masks": [[1, 2], [-100]]}, "masks for 2 tokens"),
        ({"messages": [[{"role": "user", "content": "a"}]] * 2}, "no message of"),
        ({"messages": "none"}, "a list of rollouts"),
        ({"messages": [[{"role": "user", "content": q}, {"role": "assistant", "content": "4"}] for q in "ab"]}, "same"),
        ({"scores": [1.0, "high"]}, "'high' is no number"),
    ],
)
def test_an_atropos_group_that_contradicts_itself_is_refused(change: dict[str, Any], complaint: str) -> None:
    talk = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    row = {"messages": [talk, talk], "scores": [1.0, 0.0], "tokens": [[7, 8]] * 2, "masks": [[-100, 8]] * 2}

    [whole] = groups_of([row], Format.ATROPOS)
    assert [(r.text, r.token_ids, r.reward) for r in whole.rollouts] == [("4", (8,), 1.0), ("4", (8,), 0.0)]
    with pytest.raises(ValueError, match=complaint):
        groups_of([row | change], Format.ATROPOS)


def test_what_others_said_between_two_answers_is_text_and_no_tokens() -> None:
    talk = [{"role": role, "content": role} for role in ("user", "assistant", "tool", "assistant", "tool")]

    [group] = groups_of(
        [{"messages": [talk], "scores": [1], "tokens": [[1, 2, 3]], "masks": [[-100, 2, -100]]}], Format.ATROPOS
    )

    assert group.rollouts[0].text == "assistant: assistant\n\ntool: tool\n\nassistant: assistant"
    assert group.rollouts[0].token_ids == ()
    asked, answered = asked_and_answered(talk)
    assert (len(asked), len(answered)) == (1, 3)


FIELDS = (
    *("messages", "scores", "tokens", "masks", "input", "output", "score", "gts", "step", "prompt", "completion"),
    *("reward", "answer", "role", "content", "text", "rollouts", "metadata", "token_ids", "logprobs", "tool_calls"),
    *("responses_create_params", "response", "expected_answer"),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["user", "agent"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=25,
)


@given(st.sampled_from(list(Format)), st.dictionaries(st.sampled_from(FIELDS), anything))
def test_whatever_a_row_holds_it_is_a_group_or_refused(format: Format, row: dict[str, Any]) -> None:
    try:
        [group] = groups_of([row], format)
    except ValueError as error:
        reason_of(error).encode()
    else:
        assert all(token >= 0 for rollout in group.rollouts for token in rollout.token_ids)


@pytest.mark.parametrize("format", list(Format))
def test_rows_without_an_end_are_refused(format: Format) -> None:
    deep: Any = "4"
    for _ in range(100_000):
        deep = [deep]
    for field in FIELDS:
        whole = {"prompt": "2+2?", "rollouts": [{"text": "4"}]} | of_verl(1, "2+2?", "4", 1.0)
        with contextlib.suppress(ValueError):
            groups_of([whole | {field: deep}], format)


@given(anything)
def test_a_text_is_found_or_refused_and_never_left_away(value: Any) -> None:
    try:
        text = text_of(value)
    except ValueError:
        return
    assert all(part in text for part in _texts(value))


def _texts(value: Any) -> list[str]:
    """Everything in it that is said."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return _texts(value.get("content") if "role" in value else value["text"])
    return [text for part in value or () for text in _texts(part)]


@pytest.mark.parametrize(
    "prompt", [[{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], None, [{"from": "a"}], 7, ""]
)
def test_a_prompt_that_is_no_text_is_refused(prompt: Any) -> None:
    with pytest.raises(ValueError, match=r"a text was expected|at least 1 character"):
        groups_of([of_verl(1, "", "4", 1.0) | {"input": prompt}], Format.VERL)


def test_a_reference_that_is_missing_is_none_and_one_that_is_no_text_is_spelled_out() -> None:
    for gts, said in ((None, ""), (4, "4"), (["4"], '["4"]'), ("4", "4")):
        [group] = groups_of([of_verl(1, "2+2?", "4", 1.0) | {"gts": gts}], Format.VERL)
        assert group.reference == said


def test_messages_that_a_prompt_did_not_come_as_are_not_its_messages() -> None:
    said = [{"role": "user", "content": "2+2?"}]
    for kept in ([{"role": "user", "content": "other words"}], [{"role": "user", "content": 5}], "x", [], None):
        assert as_messages("2+2?", {"messages": kept}) == said


def test_labels_that_cannot_differ_are_refused() -> None:
    for low, high in ((1.0, 1.0), (-1e308, 1e308), (1.0, 0.0)):
        with pytest.raises(ValueError, match="no label is between"):
            FieldMapping(prompt="p", rollouts=None, label_range=(low, high))
        with pytest.raises(ValueError, match="no label is between"):
            MappingChange(lowest=low, highest=high)
    with pytest.raises(ValueError, match="is none"):
        FieldMapping(prompt="p", rollouts=None, reference_pattern="(")
    with pytest.raises(ValueError, match="say themselves"):
        mapping_of(Format.NATIVE, MappingChange(verifier="math"))


@pytest.mark.skipif(not ATROPOS.exists(), reason="the recorded Atropos groups are not on this machine")
def test_recorded_groups_of_atropos_are_read_with_their_tokens() -> None:
    with gzip.open(ATROPOS, "rt") as lines:
        rows = [json.loads(line) for line in lines]

    groups = groups_of(rows, Format.ATROPOS, lowest=-1)

    assert [len(group.rollouts) for group in groups] == [4] * len(rows)
    for row, group in zip(rows, groups, strict=True):
        assert [r.reward for r in group.rollouts] == [(score + 1) / 2 for score in row["scores"]]
        assert group.metadata["messages"][0]["role"] == "system"
        for rollout, mask, talk in zip(group.rollouts, row["masks"], row["messages"], strict=True):
            answers = [message["content"] for message in talk if message["role"] == "agent"]
            assert all(answer in rollout.text for answer in answers)
            own = [token for token in mask if token != -100]
            assert list(rollout.token_ids) == (own if len(answers) == 1 else [])
    assert any(rollout.token_ids for group in groups for rollout in group.rollouts)


@pytest.mark.skipif(not NEMO_GYM.exists(), reason="the recorded rollouts of NeMo Gym are not on this machine")
def test_recorded_rollouts_of_nemo_gym_are_read_with_their_rewards() -> None:
    for file in sorted(NEMO_GYM.glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]

        found = [rollout for group in groups_of(rows, Format.NEMO_GYM) for rollout in group.rollouts]

        assert Counter(r.reward for r in found) == Counter(row["reward"] for row in rows), file.name
        said = [part["text"] for row in rows for o in row["response"]["output"] for part in o.get("content") or ()]
        assert sum(len(r.text) for r in found) >= sum(map(len, said)), file.name
