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


def main() -> None:
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)  # who writes and who samples goes first
    import duckdb
    import pyarrow as pa
    from database import make_views, opened
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
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            refuse("not_told", f"the answer holds a value that {request['format']} cannot tell: {error}")
        connection.close()
        ready = opened(request)  # before it is needed
        send(b"h")


if __name__ == "__main__":
    main()
