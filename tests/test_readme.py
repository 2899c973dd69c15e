"""What is not in the README does not exist."""

import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pytest

from curation.recipe import Recipe
from curation.selection import SelectorChoices
from curation.selectors.base import SelectorSettings
from service.app import create_app
from service.verifiers.catalogue import BUILT_IN

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_route_is_in_the_readme_and_no_other() -> None:
    app = create_app(lambda: nullcontext())  # type: ignore[arg-type]
    routes = {
        f"{method.upper()} {path}"
        for path, methods in app.openapi()["paths"].items()
        for method in methods
        if method != "head"  # which goes without saying
    }

    said = set(re.findall(r"^\| `((?:GET|POST|DELETE|HEAD) [^`]+)` \|", README, re.MULTILINE))

    assert said == routes


@pytest.mark.parametrize("name", [*BUILT_IN, *Recipe.model_fields])
def test_every_verifier_and_every_field_of_a_recipe_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in README


def test_every_command_in_the_readme_has_its_options() -> None:
    commands = re.findall(r"refinery ((?:[a-z]+ ?){1,2})", README)
    for verbs in {command.strip() for command in commands}:
        ended = subprocess.run(
            [sys.executable, "-m", "refinery", *verbs.split()[:2], "--help"], capture_output=True, check=False
        )
        if ended.returncode:
            ended = subprocess.run(
                [sys.executable, "-m", "refinery", verbs.split()[0], "--help"], capture_output=True, check=False
            )
        assert ended.returncode == 0, verbs


@pytest.mark.parametrize("choice", get_args(SelectorChoices), ids=lambda choice: choice.__name__)
def test_every_selector_and_every_option_of_it_is_documented(choice: type[SelectorSettings]) -> None:
    page = (ROOT / "docs/selection.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `{choice.model_fields['kind'].default}` |"))

    assert {name for name in choice.model_fields if name != "kind"} <= set(re.findall(r"`(\w+)`", row))


def test_every_option_of_the_trainers_in_their_page_exists() -> None:
    page = (ROOT / "docs/training.md").read_text()
    commands = re.findall(r"refinery train ([a-z0-9-]+)((?: [^`\n]*)?)", page)
    help_of = {
        verb: subprocess.run(
            [sys.executable, "-m", "refinery", "train", verb, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for verb in {verb for verb, _ in commands}
    }

    assert set(help_of) == {"dpo", "grpo", "g2d", "semi-online"}
    every = " ".join(help_of.values())
    assert {option for option in re.findall(r"`(--[a-z0-9-]+)", page) if option not in every} <= {"--num_processes"}
    for verb, options in commands:
        for option in re.findall(r"(--[a-z0-9-]+)", options):
            assert option in help_of[verb], f"{verb} {option}"
