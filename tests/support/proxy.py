"""A proxy before the object storage: it delays, limits, stalls and breaks connections, as a network between them does.

It passes bytes on as they are, so that signatures hold. What it does is changed while it runs, by assigning its fields.
"""

import asyncio
import contextlib
import socket
import threading

BLOCK_BYTES = 16 << 10


class Proxy:
    """Listens on a free port of this machine before one of this machine's servers, in a thread of its own."""

    def __init__(self, behind: int) -> None:
        self.behind = behind
        self.port = 0
        self.delay_s = 0.0
        """Added to each request."""
        self.bytes_per_s: float | None = None
        """Limit of each connection, in each direction."""
        self.stall_after: int | None = None
        """Bytes of a connection's requests after which nothing more passes on it; for `stalls` connections."""
        self.stalls = 0
        self.stalled = 0
        self.requests = 0
        """Requests, and answers of "100 Continue" that a request's body waited for."""
        self.bytes_up = 0
        self._away = False
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-proxy", daemon=True)

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # what is sent is not in a buffer here
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, sock=listening), self._loop)
        self._server = server.result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self.go_away()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def go_away(self) -> None:
        """Break all connections, and every new one at once, until `come_back`."""
        self._away = True
        done = asyncio.run_coroutine_threadsafe(self._break_all(), self._loop)
        done.result(10)

    def come_back(self) -> None:
        """Pass connections on again."""
        self._away = False

    def outage(self, seconds: float) -> threading.Timer:
        """Go away now, and come back by itself; returns the timer."""
        self.go_away()
        timer = threading.Timer(seconds, self.come_back)
        timer.daemon = True
        timer.start()
        return timer

    async def _break_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._away:
            writer.transport.abort()
            return
        answers, requests = await asyncio.open_connection("127.0.0.1", self.behind)
        self._writers |= {writer, requests}
        turn = _Turn()
        both = [self._pass(reader, requests, turn, up=True), self._pass(answers, writer, turn, up=False)]
        tasks = [asyncio.ensure_future(each) for each in both]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in (writer, requests):
                self._writers.discard(each)
                each.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, turn: "_Turn", *, up: bool
    ) -> None:
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(BLOCK_BYTES):
                if up and not turn.asked:
                    self.requests += 1
                    await asyncio.sleep(self.delay_s)
                turn.asked = up
                passed += len(data)
                if up and self.stall_after is not None and passed > self.stall_after and self.stalls > 0:
                    self.stalls -= 1
                    self.stalled += 1
                    await asyncio.sleep(3600)
                if up:
                    self.bytes_up += len(data)
                writer.write(data)
                await writer.drain()
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)


class _Turn:
    """Whose bytes came last on a connection: a request begins where the server's did."""

    asked = False
