"""A look at a question before it is run: one SELECT over the published views, and no function that reads anything else.

It is the outer wall only. The container, the limits and a database of its own hold what it misses; but what somebody
else's rows are is decided here and in the views alone.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb

MOST_SQL = 20_000
"""Characters of a question."""
TABLE_FUNCTIONS = {"range", "generate_series", "unnest"}
NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "CTE_NODE", "RECURSIVE_CTE_NODE"}
SOURCES = {"BASE_TABLE", "TABLE_FUNCTION", "SUBQUERY", "JOIN", "EXPRESSION_LIST", "EMPTY", "PIVOT", "SHOW_REF"}
DENIED = {
    *("current_setting", "getvariable", "getenv", "write_log", "nextval", "currval", "txid_current", "version"),
    *("pg_get_viewdef", "pg_get_constraintdef", "current_query", "current_database", "current_schema"),
    *("current_schemas", "in_search_path", "json_execute_serialized_sql", "json_serialize_sql", "json_serialize_plan"),
    *("json_deserialize_sql", "set_variable", "parse_duckdb_log_message", "add_parquet_key", "stats", "sleep_ms"),
    *("current_query_id", "current_connection_id", "current_transaction_id", "vector_type"),
}
"""Functions that tell or change something besides the rows."""
PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
"""Names that cannot be those of files."""
ONE_SELECT = "one SELECT is what can be asked"

Node = dict[str, Any]


class Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Look:
    """Parses in a database that holds nothing."""

    def __init__(self) -> None:
        config = {"threads": "1", "memory_limit": "256MB", "temp_directory": ""}
        self._parser = duckdb.connect(":memory:", config=config)
        # The parameter makes DuckDB import what it converts values with, which takes longer than most questions do.
        names = self._parser.execute("select view_name from duckdb_views() where internal = ?", [True]).fetchall()
        self._system = {name.lower() for (name,) in names}

    def __call__(self, sql: str, views: Sequence[str]) -> list[str]:
        """The views that the question names. Raises Refused for one that may not be asked."""
        if len(sql) > MOST_SQL:
            raise Refused("sql_too_long", f"a question has at most {MOST_SQL} characters")
        if "\0" in sql:
            raise Refused("bad_sql", "a question holds no zero characters")
        found = self._parser.execute("select json_serialize_sql(?::varchar)", [sql]).fetchone()
        try:
            tree = json.loads(found[0] if found else "")
        except RecursionError:
            raise Refused("bad_sql", "the question is nested too deeply") from None
        if tree["error"]:
            told = tree.get("error_message", ONE_SELECT)
            raise Refused("bad_sql", ONE_SELECT if "Only SELECT" in told else told)
        if len(tree["statements"]) != 1:
            raise Refused("bad_sql", ONE_SELECT)
        return self._named(list(_walk(tree["statements"][0]["node"])), views)

    def _named(self, nodes: Sequence[Node], views: Sequence[str]) -> list[str]:
        entries = [entry for node in nodes for entry in (node.get("cte_map") or {}).get("map", ())]
        defined = {entry["key"].lower() for entry in entries}
        # A name that a WITH gives is not known to its scope alone here; what the system has must not slip through so.
        if taken := sorted(name for name in defined if name in self._system or not PLAIN.fullmatch(name)):
            raise Refused("sql_refused", f"{taken[0]} cannot be the name of a WITH: choose a plain one of your own")
        for node in nodes:
            _check_kind(node)
            _check_functions(node)
        tables = (_view_of(node, views, defined) for node in nodes if node.get("type") == "BASE_TABLE")
        return sorted({name for name in tables if name is not None})


def _walk(value: Any) -> Iterator[Node]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_kind(node: Node) -> None:
    kind = str(node.get("type", ""))
    if kind.endswith("_NODE") and kind not in NODES:
        raise Refused("sql_refused", f"{kind} is not for questions")
    is_source = {"query_location", "alias", "sample"} <= node.keys()
    if is_source and kind not in SOURCES:
        raise Refused("sql_refused", f"one cannot select from {kind.lower()}")
    if kind == "SHOW_REF" and node.get("table_name"):
        raise Refused("sql_refused", "DESCRIBE and SUMMARIZE take a view or a SELECT")


def _check_functions(node: Node) -> None:
    if node.get("type") == "TABLE_FUNCTION":
        name = str(node["function"].get("function_name", ""))
        if name.lower() not in TABLE_FUNCTIONS:
            raise Refused("sql_refused", f"one cannot select from the function {name}")
    if "function_name" in node:
        name = str(node["function_name"])
        is_elsewhere = node.get("schema") not in ("", None, "main", "pg_catalog") or node.get("catalog")
        if name.lower() in DENIED or name.startswith("__internal") or is_elsewhere:
            raise Refused("sql_refused", f"the function {name} is not for questions")


def _view_of(node: Node, views: Sequence[str], defined: set[str]) -> str | None:
    """The published view that a table is; None for one that a WITH defines."""
    name: str = node["table_name"].lower()
    schema, catalog = node["schema_name"], node["catalog_name"]
    if name in views and schema in ("", "main") and catalog in ("", "memory"):
        return name
    if name in defined and not schema and not catalog:
        return None
    full = ".".join(filter(None, (catalog, schema, node["table_name"])))
    raise Refused("sql_refused", f"there is no view {full}; there are {', '.join(views)}")
