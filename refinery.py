"""The command ``refinery``: the verbs of whatever is installed on this machine.

Each package offers its verbs through the entry point group ``refinery.verbs``; one whose libraries are not installed
is left out, so that a service box needs no TRL and a trainer box no FastAPI.
"""

import sys
from importlib.metadata import entry_points

import typer


def build() -> typer.Typer:
    app = typer.Typer(
        name="refinery",
        help="Turn generation compute into training signal: curate rollouts, freeze preference pairs, train.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    for offer in sorted(entry_points(group="refinery.verbs"), key=lambda e: e.name):
        try:
            register = offer.load()
        except ModuleNotFoundError:
            continue
        register(app)
    return app


def main() -> None:
    try:
        build()(standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
