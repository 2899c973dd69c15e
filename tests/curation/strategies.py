"""What hypothesis draws for more than one test file."""

from collections.abc import Iterable

from hypothesis import strategies as st

from curation.history import History, PastGroup
from curation.recipe import (
    AllRightWithWrong,
    BestAndWorst,
    BestWithRandom,
    BestWithWorst,
    FirstRightFirstWrong,
    KeepAll,
    KRandomPairs,
    MaxReward,
    MaxVariance,
    OneRandomPair,
    Quantiles,
    RandomSubset,
    Recipe,
)
from curation.records import Group, GroupKind, Outcome
from tests.builders import a_group, a_prompt, a_rollout

PAST = {
    GroupKind.EASY: PastGroup(GroupKind.EASY, 1.0, 2),
    GroupKind.HARD: PastGroup(GroupKind.HARD, 0.0, 2),
    GroupKind.INFORMATIVE: PastGroup(GroupKind.INFORMATIVE, 0.5, 2),
    GroupKind.UNSCORED: PastGroup(GroupKind.UNSCORED, 0.0, 0),
}


def a_history(visits: int, kinds_N: Iterable[GroupKind]) -> History:
    """A prompt's past that had groups of these kinds."""
    return History(visits, tuple(PAST[kind] for kind in kinds_N))


histories = st.builds(a_history, st.integers(0, 100), st.lists(st.sampled_from(GroupKind), max_size=8))
keeps = st.integers(2, 6)
margins = st.floats(0, 1)
seeds = st.integers(0, 2**32)

down_samplings = st.one_of(
    st.just(KeepAll()),
    st.builds(MaxVariance, keep=keeps),
    st.builds(MaxReward, keep=keeps),
    st.builds(MaxVariance, keep=keeps, draw_among_equals=st.just(True)),
    st.builds(BestAndWorst, keep=keeps),
    st.builds(Quantiles, keep=keeps),
    st.builds(RandomSubset, keep=keeps),
)
pair_rules = st.one_of(
    st.just(FirstRightFirstWrong()),
    st.just(OneRandomPair()),
    st.builds(BestWithWorst, margin=margins, length_penalty=st.sampled_from([0.0, 0.5])),
    st.builds(BestWithRandom, margin=margins),
    st.just(AllRightWithWrong()),
    st.builds(KRandomPairs, k=st.integers(1, 5)),
)
version_ranges = st.tuples(st.integers(0, 3), st.integers(0, 3)).map(lambda ends: (min(ends), max(ends)))
recipes = st.builds(
    Recipe,
    runs=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, unique=True).map(tuple),
    policy_versions=st.none() | version_ranges,
    down_sampling=down_samplings,
    pairs=pair_rules,
    no_answer_is_wrong=st.booleans(),
    truncated=st.booleans(),
    verifier=st.sampled_from([None, None, None, "math@1", "math@2"]),
    max_pairs=st.none() | st.integers(1, 12),
    test_share=st.floats(0, 0.9),
    seed=seeds,
)

scored_rollouts = st.builds(
    a_rollout, st.sampled_from([0.0, 0.25, 0.5, 1.0]), truncated=st.sampled_from([False, False, False, True])
)
rollouts = st.one_of(
    scored_rollouts,
    scored_rollouts,
    st.sampled_from(
        [a_rollout(0.0, outcome=Outcome.NO_ANSWER), a_rollout(None), a_rollout(None, outcome=Outcome.ERROR)]
    ),
)


@st.composite
def group_lists(draw: st.DrawFn) -> list[Group]:
    """Groups of a few prompts in a few runs, each prompt, run and visit at most once."""
    places = st.tuples(st.sampled_from(["1 + 1?", "2 + 2?", "3 + 3?"]), st.sampled_from(["a", "b"]), st.integers(0, 2))
    return [
        a_group(
            *draw(st.lists(rollouts, max_size=8)),
            prompt=a_prompt(text),
            run=run,
            visit=visit,
            policy_version=draw(st.integers(0, 3)),
        )
        for text, run, visit in draw(st.lists(places, max_size=8, unique=True))
    ]
