"""Work in a thread that nobody waits for when the service ends."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_daemon_thread(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """As `asyncio.to_thread`; but what waits for another machine, perhaps for hours, keeps no service from ending. Only
    for work that may break off anywhere, and is done again another time."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from now on it cannot be cancelled: the thread goes on

    def run() -> None:
        try:
            future.set_result(work(*arguments, **options))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is of whoever waits
            future.set_exception(error)

    Thread(target=run, name=work.__name__, daemon=True).start()
    return await asyncio.wrap_future(future)
