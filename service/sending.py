"""HTTP/1.1 as uvicorn speaks it, and what it lacks.

- The kernel sends whole files: their bytes never pass through Python. A FileResponse asks for that where a server
  offers ASGI's ``http.response.pathsend``. Answers to HEAD and Range go their usual way.
- Whoever holds a connection and does not come to the point is hung up on.
- An answer that cannot be finished breaks off: the reader notices, and the log has one line.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.stages import StageError

logger = logging.getLogger(__name__)
PART = 2 * 2**20
"""Bytes for one call: a fast reader of a cold file must not keep all others waiting."""
HEAD_SECONDS = 60.0
"""That a request's head may take from the connection or the answer before it on. A byte now and then is not enough."""


class SendingFiles(H11Protocol):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        answer = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def send_or_pass(message: Any) -> None:
                if message["type"] == "http.response.pathsend":
                    await self._send(Path(message["path"]))
                    message = {"type": "http.response.body"}
                await send(message)

            try:
                await answer(scope | {"extensions": {"http.response.pathsend": {}}}, receive, send_or_pass)
            except RuntimeError as error:  # Starlette's, when it knows what to say and an answer has begun already
                if not isinstance(error.__cause__, StageError):
                    raise
                logger.warning("an answer broke off: %s", error.__cause__)
                self.transport.abort()
                await asyncio.sleep(0)  # until uvicorn has heard of it

        self.app = app
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()

    def connection_lost(self, error: Exception | None) -> None:
        if self._patience:
            self._patience.cancel()
        super().connection_lost(error)

    def _await_head(self) -> None:
        if self._patience:
            self._patience.cancel()
        self._patience = self.loop.call_later(HEAD_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    async def _send(self, path: Path) -> None:
        with await asyncio.to_thread(path.open, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if self.conn.our_state is h11.SEND_BODY:  # else the client is gone already
                # h11 only counts what it passes through.
                self.conn.send_with_data_passthrough(h11.Data(data=range(size)))  # type: ignore[arg-type]
            try:
                for start in range(0, size, PART):
                    if self.transport.is_closing():
                        return
                    await self.loop.sendfile(self.transport, file, start, min(PART, size - start))
            except (ConnectionError, TimeoutError):  # the client is gone, which is no error of ours
                self.transport.abort()
