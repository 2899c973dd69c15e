"""What selection is worth to a policy that learns: rollouts until it is equally good on held-out problems.

GRPO in its plainest form, on the embedded policy: groups of 8 at temperature 1, advantages within the group, one
on-policy gradient step for each batch, no KL, no clipping (with one step per batch it would change nothing). All arms
start from the same weights, learn from the same pool with the same optimiser and differ in which prompts they roll out:

- `grpo`: as many prompts as a batch has groups; those that agree just count nothing.
- `dynamic_sampling`: rounds of half as many again until the batch is full of informative groups; `_abs` sizes them.
- `greso`, `posterior`: the same with a selector.
- `random`: as many prompts a step as `posterior` took in the same seed, at random, trained on whatever is informative.

The pool has few problems that the policy sometimes solves: that is what selection is for.
"""

import multiprocessing
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM

from benchmarks.report import Figure, spread
from curation.keys import seed_for
from curation.pods import advantages
from curation.records import GroupKind, kind_of
from curation.selection import Batch, RunState, SelectorChoices, plan_round, round_size
from curation.selectors.base import Seen
from curation.selectors.posterior import Posterior
from curation.selectors.simple import Everything, Greso
from service.checkpoints import EMBEDDED
from service.engines.sampling import Row, generate
from service.engines.tokens import Tokens
from service.run_config import Sampling
from service.verifiers import gym_rule
from service.verifiers.base import NoAnswer, Question
from trainers.tasks import LEVELS, Problem, distinct

SEEDS = 5
STEPS = 30
GROUPS = 32
"""Of one training step."""
SAMPLING = Sampling(n=8, temperature=1.0, max_tokens=96)
GREEDY = Sampling(n=1, temperature=0.0, max_tokens=96)
LEARNING_RATE = 1e-4
EVALUATE_EVERY = 1
HELD_OUT_PER_LEVEL = 50
POOL = {"sum of 2 digits": 120, "sum of 4 digits": 60, "sum of 5 digits": 60, "sum of 6 digits": 240}
"""Problems of each level that are learned from: most of them the policy always or never solves."""
REACHED = 0.9
"""Of what dynamic sampling gains in the same seed: the accuracy that is waited for."""


@dataclass(frozen=True, slots=True)
class Arm:
    selector: SelectorChoices
    batch: Batch
    refills: bool = True
    """Whether a step goes on until its batch is full of informative groups."""


ARMS: dict[str, Arm] = {
    "grpo": Arm(Everything(), Batch(groups=GROUPS, prompts=GROUPS, adaptive=False), refills=False),
    "dynamic_sampling": Arm(Everything(), Batch(groups=GROUPS, prompts=GROUPS * 3 // 2, adaptive=False)),
    "dynamic_sampling_abs": Arm(Everything(), Batch(groups=GROUPS, prompts=GROUPS * 3 // 2, least=4)),
    "greso": Arm(Greso(floor=0.01), Batch(groups=GROUPS, prompts=GROUPS * 3 // 2, least=4)),
    "posterior": Arm(Posterior(), Batch(groups=GROUPS, prompts=GROUPS * 3 // 2, least=1)),
}


class Point(NamedTuple):
    rollouts: int
    """For training, so far."""
    accuracy: float
    """Share of greedy answers on held-out problems that are right."""


Curve = list[Point]
Judged = tuple[list[Row], list[float]]
"""The rollouts of a problem and their rewards."""


def run(seeds: int = SEEDS, steps: int = STEPS) -> dict[str, Figure]:
    """For each arm its accuracy at the end and its rollouts, and `..._fewer`: how many times fewer rollouts than
    dynamic sampling it took to the accuracy that is waited for, in the same seed; 0 where it never got there.
    `start_accuracy`: before any step."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(context.cpu_count()) as pool:
        curves = pool.starmap(curves_of, [(seed, steps) for seed in range(seeds)], chunksize=1)
    figures: dict[str, Figure] = {"start_accuracy": spread([one["grpo"][0].accuracy for one in curves], "share")}
    for arm in curves[0]:
        figures[f"{arm}_accuracy"] = spread([_settled(one[arm])[-1].accuracy for one in curves], "share")
        figures[f"{arm}_rollouts"] = spread([one[arm][-1].rollouts for one in curves], "rollouts")
        figures[f"{arm}_fewer"] = spread([_fewer(one[arm], one["dynamic_sampling"]) for one in curves], "x")
    return figures


def curves_of(seed: int, steps: int) -> dict[str, Curve]:
    """Every arm, with one seed."""
    curves = {name: _learned(name, arm, seed, steps) for name, arm in ARMS.items()}
    prompts = round(curves["posterior"][-1].rollouts / SAMPLING.n / steps)
    even = Arm(Everything(), Batch(groups=GROUPS, prompts=prompts, adaptive=False), refills=False)
    return curves | {"random": _learned("random", even, seed, steps)}


def _learned(name: str, arm: Arm, seed: int, steps: int) -> Curve:
    curve = Learner(arm, seed).learn(steps)
    told = f"{curve[-1].rollouts} rollouts, accuracy {curve[-1].accuracy:.3f}"
    print(f"seed {seed}, {name}: {told}", file=sys.stderr, flush=True)  # the whole takes half an hour
    return curve


def _settled(curve: Curve) -> Curve:
    """Each accuracy as the mean of the last three."""
    return [
        Point(point.rollouts, fmean(p.accuracy for p in curve[max(0, place - 2) : place + 1]))
        for place, point in enumerate(curve)
    ]


def _fewer(curve: Curve, against: Curve) -> float:
    start, end = against[0].accuracy, _settled(against)[-1].accuracy
    wanted = start + REACHED * (end - start)
    took = [next((p.rollouts for p in _settled(c) if p.accuracy >= wanted), None) for c in (curve, against)]
    return took[1] / took[0] if took[0] and took[1] else 0.0


class Learner:
    """One policy in one arm."""

    def __init__(self, arm: Arm, seed: int) -> None:
        torch.set_num_threads(1)  # threads of so small a product only wait for each other
        torch.manual_seed(seed)
        self._arm = arm
        self._seed = seed
        self._tokens = Tokens(Path(EMBEDDED))
        self._model: Any = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        levels = {level.name: level for level in LEVELS}
        learned = [p for name, n in POOL.items() for p in distinct(levels[name], n, seed=seed, held_out=False)]
        self._pool = {problem.text: problem for problem in learned}
        self._held_out = [
            p for name in POOL for p in distinct(levels[name], HELD_OUT_PER_LEVEL, seed=seed, held_out=True)
        ]
        self._state = RunState.replay(arm.selector, [], seed=seed, group_size=SAMPLING.n)
        self._round = count()

    def learn(self, steps: int) -> Curve:
        curve = [Point(0, self._accuracy())]
        rollouts = 0
        for step in range(1, steps + 1):
            groups, sampled = self._batch()
            rollouts += sampled
            self._update(groups)
            self._state.close_step()
            if step % EVALUATE_EVERY == 0:
                curve.append(Point(rollouts, self._accuracy()))
        return curve

    def _batch(self) -> tuple[list[Judged], int]:
        """(the informative groups of a step, rollouts that they took)"""
        groups: list[Judged] = []
        sampled = 0
        while len(groups) < GROUPS:
            size = round_size(self._arm.batch, self._state, wanted=GROUPS, group_size=SAMPLING.n)
            visits = plan_round(self._pool.keys(), self._state, size=size)
            number = next(self._round)
            chosen = [visit for visit in visits if not visit.decision.action.is_skip]
            judged = self._sample([self._pool[visit.prompt_id] for visit in chosen], SAMPLING, number)
            sampled += len(chosen) * SAMPLING.n
            rewards_of = {visit.prompt_id: rewards for visit, (_, rewards) in zip(chosen, judged, strict=True)}
            for visit in visits:
                rewards = rewards_of.get(visit.prompt_id) if not visit.decision.action.is_skip else None
                seen = None if rewards is None else tuple(rewards)
                step = self._state.step
                self._state.observe(
                    Seen(visit.prompt_id, visit.epoch, step, number, visit.decision.action, seen, policy_version=step)
                )
            groups += [group for group in judged if kind_of(group[1]) is GroupKind.INFORMATIVE]
            if not self._arm.refills:
                break
        return groups[:GROUPS], sampled

    @torch.no_grad()
    def _sample(self, problems: Sequence[Problem], sampling: Sampling, number: int) -> list[Judged]:
        """Rollouts of each problem with their rewards."""
        self._model.eval()
        groups = [
            [
                Row.drawn(
                    self._tokens.prompt_ids(problem.text, sampling),
                    sampling,
                    seed_for(self._seed, number, problem.text, slot),
                )
                for slot in range(sampling.n)
            ]
            for problem in problems
        ]
        generate(self._model, self._tokens, [row for rows in groups for row in rows])
        return [
            (rows, [_reward(problem, self._tokens.text(row.token_ids)) for row in rows])
            for problem, rows in zip(problems, groups, strict=True)
        ]

    def _update(self, groups: list[Judged]) -> None:
        """One gradient step: the mean over a full batch, full or not, of each row's mean over its tokens."""
        if not groups:
            return
        self._model.train()
        rows = [row for rows, _ in groups for row in rows]
        weights_B = torch.tensor([advantage for _, rewards in groups for advantage in advantages(rewards)])
        lengths = [(len(row.prompt_ids), len(row.token_ids)) for row in rows]
        ids = [torch.tensor(row.prompt_ids + row.token_ids) for row in rows]
        ids_BT = pad_sequence(ids, batch_first=True, padding_value=self._tokens.pad)
        held_BT = pad_sequence([torch.ones_like(row_ids) for row_ids in ids], batch_first=True)
        sampled_BT = pad_sequence([torch.tensor([0.0] * p + [1.0] * t) for p, t in lengths], batch_first=True)
        logits_BTV = self._model(input_ids=ids_BT, attention_mask=held_BT).logits[:, :-1]
        logprobs_BT = torch.log_softmax(logits_BTV, dim=-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
        per_row_B = (logprobs_BT * sampled_BT[:, 1:]).sum(1) / sampled_BT.sum(1)
        loss = -(weights_B * per_row_B).sum() / (GROUPS * SAMPLING.n)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _accuracy(self) -> float:
        return fmean(rewards[0] for _, rewards in self._sample(self._held_out, GREEDY, -1))


def _reward(problem: Problem, text: str) -> float:
    prompt = problem.as_prompt()
    try:
        reward, _ = gym_rule.judge(Question(prompt["prompt"], prompt["reference"], prompt["metadata"]), text)
    except NoAnswer:
        return 0.0
    return float(reward == 1.0)
