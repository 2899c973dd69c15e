"""Rows of other systems' rollout files become groups; nothing is guessed, and nothing gets lost or doubled."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.conversations import as_messages, asked_and_answered, text_of
from curation.foreign import FieldMapping, Format, MappingChange, group_of, joined, mapping_of
from curation.recorded import RECORDED, GroupIn, RolloutIn, merged

DATA = Path(__file__).parents[3] / "shared/data"
ATROPOS = DATA / "rollouts_atropos_rubiks/rubiks_process_results_32.jsonl.gz"
NEMO_GYM = DATA / "rollouts_nemo_gym_examples"


def groups_of(rows: list[Any], format: Format, **change: Any) -> list[GroupIn]:
    mapping = mapping_of(format, MappingChange(**change))
    return [group for _, group in joined(enumerate(group_of(row, mapping) for row in rows), mapping)]


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
    whole = merged(enumerate(rows))

    asked = [(group.prompt, group.policy_version) for _, group in whole]
    assert len(set(asked)) == len(asked)
    for (number, group), question in zip(whole, asked, strict=True):
        of_it = [row for row in rows if (row.prompt, row.policy_version) == question]
        assert list(group.rollouts) == [row.rollouts[0] for row in of_it]
        assert rows[number] is of_it[0]
    assert sum(len(group.rollouts) for _, group in whole) == len(rows)


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


@given(st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda inner: st.lists(inner, max_size=3)))
def test_a_text_is_found_or_refused_and_never_invented(value: Any) -> None:
    try:
        text = text_of(value)
    except ValueError:
        return
    assert "None" not in text or "None" in str(value)


@given(
    st.sampled_from(list(Format)),
    st.dictionaries(st.sampled_from(["messages", "scores", "tokens", "input", "prompt", "output"]), st.none()),
)
def test_a_row_that_is_none_is_refused_with_a_reason(format: Format, row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|there is no|Field required|valid"):
        groups_of([row], format)
    with pytest.raises(ValueError, match=r"expected|valid"):
        groups_of([[row]], format)


def test_labels_that_cannot_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="is empty"):
        FieldMapping(prompt="p", rollouts=None, label_range=(1.0, 1.0))


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
