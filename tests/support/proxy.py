"""A proxy in front of object storage that delays, throttles, stalls and breaks connections.

It forwards bytes unchanged, so that signatures stay valid. Assign its fields to change its behavior while it runs.
"""

import asyncio
import contextlib
import socket
import threading

BLOCK_BYTES = 16 << 10


class Proxy:
    """Listens on a free port in front of a local server, in a separate thread."""

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.port = 0
        self.delay_s = 0.0
        """Delay added to each request."""
        self.bytes_per_s: float | None = None
        """Bandwidth limit of each connection, per direction."""
        self.stall_after: int | None = None
        """Number of request bytes after which a connection stalls. It applies to the next `stalls` connections."""
        self.stalls = 0
        self.stalled = 0
        self.requests = 0
        """Requests, plus the "100 Continue" responses that a request body waited for."""
        self.bytes_up = 0
        self.bytes_down = 0
        self._broken = False
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-proxy", daemon=True)

    @property
    def url(self) -> str:
        """The endpoint for clients."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Proxy":
        self._thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # buffer little of an upload
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, sock=listener), self._loop)
        self._server = server.result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self.start_outage()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start_outage(self) -> None:
        """Break all connections, and each new one immediately, until `end_outage`."""
        self._broken = True
        result = asyncio.run_coroutine_threadsafe(self._break_all(), self._loop)
        result.result(10)

    def end_outage(self) -> None:
        """Accept connections again."""
        self._broken = False

    def outage(self, seconds: float) -> threading.Timer:
        """Break all connections now, and accept them again after some seconds. Returns the timer."""
        self.start_outage()
        timer = threading.Timer(seconds, self.end_outage)
        timer.daemon = True
        timer.start()
        return timer

    async def _break_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._broken:
            writer.transport.abort()
            return
        responses, requests = await asyncio.open_connection("127.0.0.1", self.server_port)
        self._writers |= {writer, requests}
        direction = _Direction()
        directions = [
            self._forward(reader, requests, direction, up=True),
            self._forward(responses, writer, direction, up=False),
        ]
        tasks = [asyncio.ensure_future(each) for each in directions]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for each in (writer, requests):
                self._writers.discard(each)
                each.close()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: "_Direction", *, up: bool
    ) -> None:
        forwarded = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(BLOCK_BYTES):
                if up and not direction.client_sent:
                    self.requests += 1
                    await asyncio.sleep(self.delay_s)
                direction.client_sent = up
                forwarded += len(data)
                if up and self.stall_after is not None and forwarded > self.stall_after and self.stalls > 0:
                    self.stalls -= 1
                    self.stalled += 1
                    await asyncio.sleep(3600)
                if up:
                    self.bytes_up += len(data)
                else:
                    self.bytes_down += len(data)
                writer.write(data)
                await writer.drain()
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)


class _Direction:
    """Which side of a connection sent last. A request begins when the client sends after the server."""

    client_sent = False
