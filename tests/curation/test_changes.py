"""What a rescore changed: every rollout in one class before and one after, nothing lost."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from curation.changes import EXAMPLES, Changes, class_of
from curation.records import Group, Outcome, Rollout, Verdict
from tests.builders import a_group, a_rollout

OUTCOMES = st.one_of(
    st.tuples(st.just(Outcome.SCORED), st.sampled_from([0.0, 0.25, 1.0])),
    st.tuples(st.just(Outcome.NO_ANSWER), st.just(0.0)),
    st.tuples(st.sampled_from([Outcome.TIMEOUT, Outcome.ERROR, Outcome.BAD_REFERENCE]), st.none()),
)
VERDICTS = OUTCOMES.map(lambda chosen: Verdict(*chosen, "math@1"))
PAIRS = st.lists(st.lists(st.tuples(VERDICTS, VERDICTS), min_size=1, max_size=6), max_size=8)


def judged(group: Group, verdicts: list[Verdict]) -> Group:
    return replace(
        group, rollouts_G=tuple(Rollout(r.completion, v) for r, v in zip(group.rollouts_G, verdicts, strict=True))
    )


@given(PAIRS)
def test_every_rollout_is_counted_once_before_and_once_after(moves_PG: list[list[tuple[Verdict, Verdict]]]) -> None:
    changes = Changes()
    for number, moves in enumerate(moves_PG):
        group = a_group(*[0.0] * len(moves), visit=number)
        changes.add(judged(group, [old for old, _ in moves]), judged(group, [new for _, new in moves]))

    report = changes.report()

    flat = [move for moves in moves_PG for move in moves]
    assert report["groups"] == len(moves_PG)
    assert report["rollouts"] == len(flat) == sum(report["classes"].values())
    assert report["changed"] == sum(old.reward != new.reward for old, new in flat)
    assert sum(report["kinds"].values()) == len(moves_PG)
    for move, examples in report["examples"].items():
        assert len(examples) == min(
            EXAMPLES,
            sum(
                move == f"{class_of(old)} -> {class_of(new)}"
                and (old.reward != new.reward or class_of(old) != class_of(new))
                for old, new in flat
            ),
        )


def test_an_example_says_what_it_was_and_what_it_is() -> None:
    before = a_group(1.0, 0.0)
    after = judged(before, [Verdict(Outcome.SCORED, 0.0, "math@2", detail="70+75"), before.rollouts_G[1].verdict])
    changes = Changes()
    changes.add(before, after)

    [example] = changes.report()["examples"]["right -> wrong"]

    assert (example["group_id"], example["index"]) == (before.id, 0)
    assert example["before"] == {"verifier": "math@1", "reward": 1.0, "detail": ""}
    assert example["after"] == {"verifier": "math@2", "reward": 0.0, "detail": "70+75"}


def test_a_group_of_other_length_is_an_error() -> None:
    try:
        Changes().add(a_group(1.0), a_group(1.0, a_rollout(0.0)))
    except ValueError:
        return
    raise AssertionError("a rollout was lost in silence")
