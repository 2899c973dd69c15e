"""The program in the container: questions come in on standard input, answers go out on standard output.

- Every question has a DuckDB of its own, in memory: nothing that one does is there for the next.
- It knows nothing of the service and imports nothing of it: what it is told is in the request.

A request is a line of JSON. An answer is frames, as `formats` sends them. A header of its own, at the beginning and
after each answer, says that it is ready for the next question.
"""

import json
import os
import resource
import sys
from collections.abc import Iterable
from typing import Any

Request = dict[str, Any]


def main() -> None:
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)  # who writes and who samples goes first
    import duckdb
    from formats import answer, refuse, send
    from look import Look, Refused

    look = Look()
    ready: duckdb.DuckDBPyConnection | None = None
    send(b"h")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        connection = ready or opened(request)
        try:
            names = look(request["sql"], sorted(request["views"]["main"]))
            make_views(connection, request["views"], names)
            answer(connection, request)
        except Refused as error:
            refuse(error.code, str(error))
        except (MemoryError, duckdb.OutOfMemoryException) as error:
            refuse("sql_out_of_memory", f"the question needs more memory than it may have. {error}")
        except duckdb.FatalException as error:
            refuse("sql_failed", str(error))
            return  # a new process takes the next question
        except duckdb.Error as error:
            refuse("bad_sql", str(error))
        connection.close()
        ready = opened(request)  # before it is needed
        send(b"h")


def opened(request: Request) -> Any:
    """A database with empty tables in it, and no way out of it."""
    import duckdb

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


if __name__ == "__main__":
    main()
