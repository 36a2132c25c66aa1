"""A proxy that makes an object store on this machine behave like a bucket far away, at little CPU cost.

Run: python benchmarks/far_bucket.py SERVER_PORT LATENCY_MS MB_PER_S. It prints its port, and serves until it is
terminated. Each request is delayed, and each connection has a bandwidth limit for responses. Responses are moved from
socket to socket by the kernel (splice), so that the proxy needs a few percent of a CPU.
"""

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time

REQUEST_BYTES = 256 << 10
MOVE_BYTES = 256 << 10
"""Bytes per splice: the capacity of the pipe in between."""


class Connection:
    """One connection of a client, with its connection to the server."""

    def __init__(self, client: socket.socket, server_port: int, delay_s: float, bytes_per_s: float) -> None:
        self.client = client
        self.server = socket.create_connection(("127.0.0.1", server_port))
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self.responded = True
        """Whether the server sent something since the last request."""

    def start(self) -> None:
        """Serve in two threads."""
        for run in (self.requests, self.responses):
            threading.Thread(target=run, daemon=True).start()

    def requests(self) -> None:
        """Forward requests. The first bytes after a response are a new request, which is delayed."""
        with contextlib.suppress(OSError):
            while data := self.client.recv(REQUEST_BYTES):
                if self.responded:
                    self.responded = False
                    time.sleep(self.delay_s)
                self.server.sendall(data)
        self.end()

    def responses(self) -> None:
        """Forward responses at the bandwidth of the connection."""
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, MOVE_BYTES)
        begins, moved = 0.0, 0
        with contextlib.suppress(OSError):
            while count := os.splice(self.server.fileno(), writing, MOVE_BYTES):
                if not self.responded:
                    self.responded, begins, moved = True, time.monotonic(), 0
                left = count
                while left:
                    left -= os.splice(reading, self.client.fileno(), left)
                moved += count
                if (ahead := begins + moved / self.bytes_per_s - time.monotonic()) > 0:
                    time.sleep(ahead)
        os.close(reading)
        os.close(writing)
        self.end()

    def end(self) -> None:
        """Close both connections."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def main() -> None:
    """Serve until the process is terminated."""
    server_port, delay_ms, megabytes_per_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        Connection(client, server_port, delay_ms / 1000, megabytes_per_s * 1e6).start()


if __name__ == "__main__":
    main()
