"""A database for one question: the views, and no way out of it."""

from collections.abc import Iterable
from typing import Any

import duckdb

Request = dict[str, Any]


def opened(request: Request) -> Any:
    """A database with empty tables in it, and no way out of it."""
    connection = duckdb.connect(":memory:", config=request["config"])
    # In this order: once external access is off, no path can be added.
    folders = ", ".join("'" + folder + "'" for folder in request["folders"])
    connection.execute(f"set allowed_directories = [{folders}]")
    connection.execute("set enable_external_access = false")
    connection.execute(request["tables"])
    connection.execute("create schema store")
    return connection


def make_views(connection: Any, views: Request, names: Iterable[str]) -> None:
    """Those that the question names and what they stand on; then nothing can be set any more."""
    made: set[str] = set()

    def make(name: str) -> None:
        if name in views["store"] and name not in made:
            made.add(name)
            sql, needs = views["store"][name]
            for need in needs:
                make(need)
            connection.execute(sql)

    published = [views["main"][name] for name in names]
    connection.execute("set schema = 'store'")
    for _, needs in published:
        for need in needs:
            make(need)
    connection.execute("set schema = 'main'")
    for sql, _ in published:
        connection.execute(sql)
    connection.execute("set lock_configuration = true")
