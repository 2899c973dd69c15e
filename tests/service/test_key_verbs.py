"""`refinery keys`: what operators type to let others in, and to keep them out again."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from service.access import Caller, Keyring, Role
from service.key_verbs import app


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REFINERY_DATA", raising=False)


def keys(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_a_key_is_printed_once_and_lets_its_owner_in(tmp_path: Path) -> None:
    added = keys("add", "trainer-7", "--limit", "exp7-*", "--limit", "base", "--expires", "30d", "--data", "d")
    listed, as_json = keys("list", "--data", "d"), keys("list", "--data", "d", "--json")

    token = added.stdout.strip()
    assert Keyring(tmp_path / "d").caller(token) == Caller("trainer-7", Role.WRITE, ("exp7-*", "base"))
    assert "trainer-7" in listed.stdout
    assert token not in listed.output + as_json.output + added.stderr
    assert "sha256" not in json.loads(as_json.stdout)[0]


def test_keys_are_those_of_the_service_that_these_settings_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refinery.toml").write_text("data = 'of-the-file'")
    in_file = keys("add", "alice")
    monkeypatch.setenv("REFINERY_DATA", "of-the-variable")
    in_variable = keys("add", "alice")
    in_flag = keys("add", "alice", "--data", "of-the-flag")

    folders = ("of-the-file", "of-the-variable", "of-the-flag")
    for folder, added in zip(folders, (in_file, in_variable, in_flag), strict=True):
        assert Keyring(tmp_path / folder).caller(added.stdout.strip()), added.output
        assert str(tmp_path / folder) in added.stderr


def test_a_removed_key_lets_nobody_in() -> None:
    token = keys("add", "alice").stdout.strip()

    assert keys("remove", "alice").exit_code == 0

    assert Keyring(Path("refinery-data")).caller(token) is None
    assert "no keys" not in keys("list").stdout  # which would be: everybody is let in


WRONG = {
    "a name twice": (("add", "alice"), "there is a key"),
    "a name that is none": (("add", "../alice"), "name"),
    "a pattern that is none": (("add", "bob", "--limit", "a b"), "names"),
    "a limit on an admin": (("add", "bob", "--role", "admin", "--limit", "a"), "no limits"),
    "a time that is none": (("add", "bob", "--expires", "soon"), "'soon'"),
    "nobody's": (("remove", "bob"), "no key 'bob'"),
}


@pytest.mark.parametrize(("arguments", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_in_a_line_and_changes_nothing(arguments: tuple[str, ...], told: str) -> None:
    keys("add", "alice")
    before = Path("refinery-data/keys.json").read_text()

    refused = keys(*arguments)

    assert (refused.exit_code, len(refused.output.splitlines())) == (1, 1)
    assert told in refused.output
    assert Path("refinery-data/keys.json").read_text() == before
