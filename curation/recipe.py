"""A recipe: everything that turns stored groups into a dataset, versioned by its hash."""

from enum import StrEnum, auto
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from curation.choice import Choice, Several
from curation.keys import canonical_json, digest

RULES = 4
"""Revision of the curation rules: raised whenever the same recipe over the same groups would give other rows.
``tests/curation/test_curate.py`` pins the rows of a fixed history to it."""


class KeepAll(Choice):
    """No down-sampling."""

    kind: Literal["keep_all"] = "keep_all"


class MaxVariance(Choice):
    """PODS."""

    kind: Literal["max_variance"] = "max_variance"
    keep: int = Field(ge=2)
    draw_among_equals: bool = False
    """Equal rewards stand for each other: the seed draws which are taken, instead of their place in the group."""


class MaxReward(Choice):
    kind: Literal["max_reward"] = "max_reward"
    keep: int = Field(ge=2)


class BestAndWorst(Choice):
    kind: Literal["best_and_worst"] = "best_and_worst"
    keep: int = Field(ge=2)


class Quantiles(Choice):
    """Rewards at evenly spaced ranks: diverse where they are graded."""

    kind: Literal["quantiles"] = "quantiles"
    keep: int = Field(ge=2)


class RandomSubset(Choice):
    """The control arm."""

    kind: Literal["random"] = "random"
    keep: int = Field(ge=2)


DownSampling = Annotated[
    KeepAll | MaxVariance | MaxReward | BestAndWorst | Quantiles | RandomSubset, Field(discriminator="kind")
]


class _ByReward(Choice):
    margin: float = Field(0.0, ge=0, le=1)
    """Least difference of the two rewards; equal rewards are never a pair."""


class FirstRightFirstWrong(Choice):
    kind: Literal["first_right_first_wrong"] = "first_right_first_wrong"


class OneRandomPair(Choice):
    kind: Literal["one_random_pair"] = "one_random_pair"


class BestWithWorst(_ByReward):
    kind: Literal["best_with_worst"] = "best_with_worst"
    length_penalty: float = Field(0.0, ge=0)
    """Reward taken off per 1,000 characters, for the ranking only."""


class BestWithRandom(_ByReward):
    kind: Literal["best_with_random"] = "best_with_random"


class AllRightWithWrong(Choice):
    kind: Literal["all_right_with_wrong"] = "all_right_with_wrong"


class KRandomPairs(Choice):
    kind: Literal["k_random_pairs"] = "k_random_pairs"
    k: int = Field(ge=1)


PairRule = Annotated[
    FirstRightFirstWrong | OneRandomPair | BestWithWorst | BestWithRandom | AllRightWithWrong | KRandomPairs,
    Field(discriminator="kind"),
]


class Shape(StrEnum):
    """What a row is."""

    PAIRS = auto()
    """Chosen and rejected completion of a prompt."""
    LABELLED = auto()
    """A completion that is right or wrong, as KTO takes it; what lies between is left out."""
    RIGHT = auto()
    """A right completion, for supervised fine-tuning (RFT)."""
    PROMPTS = auto()
    """A prompt with its pass rate over all its groups."""
    GROUPS = auto()
    """The kept rollouts of a group with their rewards and advantages, as GRPO takes them."""


class AdvantagesOver(StrEnum):
    """Which rewards an advantage is measured against."""

    KEPT = auto()
    """Those of the kept rollouts, as PODS does."""
    ALL = auto()
    """Those of all that the recipe lets in, before down-sampling."""


class TextFormat(StrEnum):
    """How a trainer gets prompts and completions."""

    STANDARD = auto()
    """As texts."""
    CONVERSATIONAL = auto()
    """As chat messages, to which it applies the chat template of its model."""


class Decontamination(Choice):
    """Leaves out prompts that share a run of words with those of other sets."""

    prompt_sets: Several[str] = Field(min_length=1)
    words: int = Field(13, ge=1, le=100)
    """In a run."""
    least: int = Field(8, ge=1, le=100)
    """A prompt of the other sets that is shorter than a run counts wherever it stands whole, if it has so many words;
    a still shorter one counts where it is all of a prompt."""


class GroupRule(Choice):
    """From a group to its rows: what can be said of each group alone."""

    policy_versions: tuple[int, int] | None = None
    """First and last policy version to take groups from; None takes all."""
    shape: Shape = Shape.PAIRS
    down_sampling: DownSampling = KeepAll()
    pairs: PairRule = FirstRightFirstWrong()
    no_answer_is_wrong: bool = True
    """False leaves completions without an extractable answer out, instead of counting them as reward 0."""
    truncated: bool = False
    """True lets completions that were cut at the token limit into pairs; a trainer ends them with an EOS that the
    policy never wrote."""
    verifier: str | None = None
    """Label of the verdicts to use, ``math@1``; None takes the newest of each group."""
    advantages_over: AdvantagesOver = AdvantagesOver.KEPT
    zero_variance: bool = False
    """True lets groups in whose rewards agree, with advantages of 0, as plain GRPO trains on them."""
    format: TextFormat = TextFormat.STANDARD
    max_tokens: int | None = Field(None, ge=1)
    """Leaves out rows with a longer completion; bytes count where tokens were not recorded."""
    max_length_ratio: float | None = Field(None, ge=1)
    """Leaves out pairs of which one side has more than so many times the characters of the other."""
    seed: int = 0

    @model_validator(mode="after")
    def _options_go_with_the_shape(self) -> Self:
        if self.shape is Shape.PROMPTS:
            _refuse_limits(self, "max_tokens", "max_length_ratio")
        if self.shape is not Shape.PAIRS and self.max_length_ratio:
            raise ValueError("max_length_ratio compares the two sides of a pair")
        if self.shape is not Shape.PAIRS and self.pairs != FirstRightFirstWrong():
            raise ValueError(f"pairs is a rule for shape pairs, not for {self.shape}")
        if self.shape is not Shape.GROUPS and self.advantages_over is not AdvantagesOver.KEPT:
            raise ValueError("advantages_over is for shape groups")
        if self.shape is not Shape.GROUPS and self.zero_variance:
            raise ValueError("zero_variance is for shape groups")
        if self.shape is Shape.PROMPTS and self.down_sampling != KeepAll():
            raise ValueError("a row of shape prompts stands for all rollouts of a prompt: nothing is down-sampled")
        return self

    @model_validator(mode="after")
    def _versions_in_order(self) -> Self:
        if self.policy_versions and self.policy_versions[0] > self.policy_versions[1]:
            raise ValueError(f"policy_versions {self.policy_versions} end before they begin")
        return self


class Recipe(GroupRule):
    """From the groups of some runs to a dataset."""

    runs: Annotated[Several[str], Field(min_length=1), AfterValidator(lambda runs: tuple(sorted(runs)))]
    """Names of the runs whose groups are read; their order says nothing."""
    decontaminate: Decontamination | None = None
    unique: bool = False
    """Of rows with the same texts only that of the newest policy version stays."""
    per_prompt: int | None = Field(None, ge=1)
    """Keep at most so many rows of a prompt, drawn by the seed."""
    per_difficulty: int | None = Field(None, ge=1)
    """Keep at most so many rows of each tenth of pass rate, drawn by the seed."""
    max_pairs: int | None = Field(None, ge=1)
    """Keep at most so many rows, drawn by the seed."""
    test_share: float = Field(0.0, ge=0, lt=1)
    """Share of prompts that go to the test split; no prompt is in both."""

    @model_validator(mode="after")
    def _limits_go_with_the_shape(self) -> Self:
        if self.shape is Shape.PROMPTS:
            _refuse_limits(self, "unique", "per_prompt", "per_difficulty", "max_pairs")
        return self

    @model_validator(mode="after")
    def _runs_once(self) -> Self:
        if len(set(self.runs)) < len(self.runs):
            raise ValueError("a run is named twice: its pairs would be doubled")
        return self

    @property
    def hash(self) -> str:
        # A field that came later counts once it says something: older recipes keep their names.
        silent = set() if self.zero_variance else {"zero_variance"}
        return digest(canonical_json(self.model_dump(mode="json", exclude=silent)))

    def dataset_id(self, watermark: int, contamination: str = "") -> str:
        """Names the rows: recipe, how much of the store it saw, what it was decontaminated against (a digest), and the
        rules that were in force."""
        return digest(self.hash, watermark, RULES, *([contamination] if contamination else []))


def _refuse_limits(rule: GroupRule, *names: str) -> None:
    """Raises ValueError where one of them is given."""
    if given := [name for name in names if getattr(rule, name)]:
        raise ValueError(f"a row of shape prompts stands for all groups of a prompt: {', '.join(given)} limits none")
