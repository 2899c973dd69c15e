"""Completions that somebody else judged, from public files as their projects publish them.

Every reader takes a folder of such files, each in a folder of its set, and gives nothing where its file is not there.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from curation.records import Prompt

FORMS = {"latex", "expr"}


@dataclass(frozen=True, slots=True)
class Labelled:
    prompt: Prompt
    text: str
    label: float


def gsm8k(data: Path) -> Iterator[Labelled]:
    """github.com/openai/grade-school-math: example_model_solutions.jsonl"""
    for row in rows_of(data / "rollouts_gsm8k_4x/example_model_solutions.jsonl.gz"):
        reference = row["ground_truth"].rpartition("A: ")[2].strip()
        for value in row.values():
            if isinstance(value, dict):
                yield Labelled(_math(reference), value["solution"], float(value["is_correct"]))


def qwen_math(data: Path) -> Iterator[Labelled]:
    """github.com/QwenLM/Qwen2.5-Math: evaluation/data/eval_rm_maj_example/math_cot_100.jsonl"""
    for row in rows_of(data / "rollouts_qwen_math_100x8/math_cot_100.jsonl.gz"):
        for text, label in zip(row["code"], row["score"], strict=True):
            yield Labelled(_math(row["gt"]), text, float(label))


def nemo_gym_math(data: Path) -> Iterator[Labelled]:
    """github.com/NVIDIA-NeMo/Gym: example_rollouts.jsonl of math_with_judge; its labels are from a judge, too"""
    for row in rows_of(data / "rollouts_nemo_gym_examples/math_with_judge.jsonl"):
        said = [
            part["text"] for item in row["response"]["output"] for part in item.get("content") or () if "text" in part
        ]
        yield Labelled(_math(row["expected_answer"]), "\n".join(said), float(row["reward"]))


def nemo_gym_choices(data: Path) -> Iterator[Labelled]:
    """github.com/NVIDIA-NeMo/Gym: example_rollouts.jsonl of mcqa"""
    for row in rows_of(data / "rollouts_nemo_gym_examples/mcqa.jsonl"):
        said = [
            part["text"] for item in row["response"]["output"] for part in item.get("content") or () if "text" in part
        ]
        prompt = Prompt("p", "?", row["expected_answer"], "choice")
        yield Labelled(prompt, "\n".join(said), float(row["reward"]))


def cases(source: str, data: Path) -> Iterator[Labelled]:
    """Cases of other projects' own tests of their mathematical verifiers, under the settings of each case."""
    for row in rows_of(data / "verifier_cases/triples.jsonl"):
        settings = row["params"]
        forms = settings.get("match_types", FORMS)
        if row["source"] != source or "slow" in settings or not FORMS.issuperset(forms):
            continue
        options = {"reads": ",".join(sorted(forms)), "decimals": settings.get("precision", 6)}
        options["relations"] = str(settings.get("allow_set_relation_comp", False)).lower()
        verifier = "math?" + "&".join(f"{name}={value}" for name, value in options.items())
        yield Labelled(Prompt("p", "?", row["gold"], verifier), row["pred"], row["expected"])


SETS: dict[str, Callable[[Path], Iterator[Labelled]]] = {
    "gsm8k": gsm8k,
    "qwen_math": qwen_math,
    "nemo_gym_math": nemo_gym_math,
    "nemo_gym_choices": nemo_gym_choices,
    "cases_math_verify": partial(cases, "huggingface/Math-Verify"),
    "cases_areal": partial(cases, "inclusionAI/AReaL"),
    "cases_lighteval": partial(cases, "huggingface/lighteval"),
    "cases_nemo_gym": partial(cases, "NVIDIA-NeMo/Gym"),
    "cases_verifiers": partial(cases, "PrimeIntellect-ai/verifiers"),
    "cases_slime": partial(cases, "THUDM/slime"),
    "cases_tinker": partial(cases, "thinking-machines-lab/tinker-cookbook"),
    "cases_rllm": partial(cases, "rllm-org/rllm"),
}


def _said(row: dict[str, Any]) -> str:
    """The text of a Responses API response."""
    parts = (part for item in row["response"]["output"] for part in item.get("content") or ())
    return "\n".join(part["text"] for part in parts if "text" in part)


def _math(reference: str) -> Prompt:
    return Prompt("p", "?", str(reference), "math")


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        for line in lines:
            yield json.loads(line)
