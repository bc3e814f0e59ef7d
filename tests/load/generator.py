"""A load on a site that keeps count: every request that was sent, and what became of it.

`python -m load.generator SITE OUT SCALE CLIENT` goes on until it gets SIGTERM, lets what it has begun
end, and writes a JSON object a line into OUT for every request. Requests begin at fixed times, whether
or not the ones before have been answered: a site that stalls is not spared.

A CLIENT that is `strict` takes every connection that is closed without an answer for a failure. A
`browser` sends a request again, once and on a new connection, if the kept one that it took was closed
when it had hardly begun: a server may close an idle connection at any time (RFC 9112, 9.3.1).
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

UPLOAD = 1_000_000  # bytes
PARTS = 8
PART_SECONDS = 0.25  # an upload of a slow sender takes nearly two seconds
SLOW_MS = 1000
# What the application works on an upload after it has it: a POST that is lost then is lost for good,
# and a PUT that nginx sends once more is written twice.
UPLOAD_MS = 300

ANSWER_WITHIN = 60.0  # seconds; later is a failure

CLOSED = ("ServerDisconnectedError", "ClientOSError")  # without an answer


@dataclass(frozen=True)
class Request:
    """What was sent, and what came of it. Times are time.monotonic()'s, which is the machine's."""

    kind: str
    method: str
    id: str
    began: float
    seconds: float
    failure: str = ""  # empty: answered as it should be
    sent_again: bool = False


@dataclass(frozen=True)
class Kind:
    """One kind of request, so many of which begin in a second."""

    name: str
    method: str
    per_second: float
    new_connection: bool = False
    slow: bool = False


KINDS = (
    Kind("GET", "GET", 200),
    Kind("GET, new connection", "GET", 20, new_connection=True),
    Kind("GET, slow", "GET", 10, slow=True),
    Kind("POST upload", "POST", 10, slow=True),
    Kind("PUT upload", "PUT", 10, slow=True),
)


Client = Literal["strict", "browser"]


@dataclass
class Attempt:
    """How far a request came on its connection."""

    kept: bool = False  # whether the connection was one that was kept open
    parts: int = 0  # of an upload, that were sent

    @property
    def had_hardly_begun(self) -> bool:
        """Whether it was sent on a kept connection, and not much of it."""
        return self.kept and self.parts <= 2


class Generator:
    """Sends requests to a site until it is told to stop."""

    def __init__(self, site: str, scale: float, client: Client) -> None:
        self._site = site
        self._scale = scale
        self._client = client
        self._stop = asyncio.Event()
        self.sent: list[Request] = []

    def stop(self) -> None:
        """Begins no more requests."""
        self._stop.set()

    async def run(self) -> None:
        """Sends requests until `stop`, and returns when all are answered or given up."""
        timeout = aiohttp.ClientTimeout(total=ANSWER_WITHIN)
        traced = aiohttp.TraceConfig()
        traced.on_connection_reuseconn.append(_note_a_kept_connection)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), timeout=timeout, trace_configs=[traced]
            ) as kept_alive,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True), timeout=timeout
            ) as new,
        ):
            for session in (kept_alive, new):
                # It would send a request again whose connection was cut, and not say so.
                assert session._retry_connection
                session._retry_connection = False
            await asyncio.gather(
                *(self._stream(kind, new if kind.new_connection else kept_alive) for kind in KINDS)
            )

    async def _stream(self, kind: Kind, session: aiohttp.ClientSession) -> None:
        pause = 1 / (kind.per_second * self._scale)
        began: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        due = loop.time()
        number = 0
        while not self._stop.is_set():
            task = asyncio.create_task(self._send(kind, session, number))
            began.add(task)
            task.add_done_callback(began.discard)
            number += 1
            due += pause
            await asyncio.sleep(max(0, due - loop.time()))
        await asyncio.gather(*began)

    async def _send(self, kind: Kind, session: aiohttp.ClientSession, number: int) -> None:
        name = f"{kind.method}-{number}"
        began = time.monotonic()
        attempt = Attempt()
        failure = await self._failure_of(kind, session, name, attempt)
        is_closed = failure in CLOSED and attempt.had_hardly_begun
        again = is_closed and self._client == "browser"
        if again:
            async with aiohttp.ClientSession(timeout=session.timeout) as new:
                failure = await self._failure_of(kind, new, name, Attempt())
        seconds = time.monotonic() - began
        self.sent.append(Request(kind.name, kind.method, name, began, seconds, failure, again))

    async def _failure_of(
        self, kind: Kind, session: aiohttp.ClientSession, name: str, attempt: Attempt
    ) -> str:
        ask: Callable[..., Awaitable[str]] = self._upload if kind.method != "GET" else self._get
        try:
            return await ask(kind, session, name, attempt)
        except TimeoutError:
            return f"no answer within {ANSWER_WITHIN:g} s"
        except (aiohttp.ClientError, OSError) as error:
            return type(error).__name__

    async def _get(
        self, kind: Kind, session: aiohttp.ClientSession, _: str, attempt: Attempt
    ) -> str:
        path = f"/slow?ms={SLOW_MS}" if kind.slow else "/version"
        async with session.get(self._site + path, trace_request_ctx=attempt) as answer:
            await answer.read()
            return "" if answer.status == 200 else str(answer.status)

    async def _upload(
        self, kind: Kind, session: aiohttp.ClientSession, name: str, attempt: Attempt
    ) -> str:
        # Of a known length, as a browser and Leiningen send it.
        headers = {"Content-Length": str(UPLOAD)}
        async with session.request(
            kind.method,
            f"{self._site}/upload/{name}?ms={UPLOAD_MS}",
            data=_slowly(attempt),
            headers=headers,
            trace_request_ctx=attempt,
        ) as answer:
            text = await answer.text()
            if answer.status != 200:
                return str(answer.status)
            return "" if text == str(UPLOAD) else f"wrote {text} bytes"


async def _note_a_kept_connection(_session: Any, context: Any, _params: Any) -> None:
    context.trace_request_ctx.kept = True


async def _slowly(attempt: Attempt) -> AsyncIterator[bytes]:
    # aiohttp sends the headers with the first part, so that comes at once.
    for number in range(PARTS):
        if number > 0:
            await asyncio.sleep(PART_SECONDS)
        attempt.parts += 1
        yield bytes(UPLOAD // PARTS)


async def _main(site: str, out: Path, scale: float, client: Client) -> None:
    generator = Generator(site, scale, client)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, generator.stop)
    await generator.run()
    lines = (json.dumps(asdict(request)) + "\n" for request in generator.sent)
    out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    client: Client = "browser" if sys.argv[4] == "browser" else "strict"
    asyncio.run(_main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), client))
