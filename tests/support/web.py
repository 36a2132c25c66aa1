"""A real web server for tests. It serves a folder with range requests and can break connections."""

import http.server
import re
import threading
from pathlib import Path


class WebServer:
    """One server on a free port on loopback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[tuple[str, int]] = []
        """Path and first byte of each request."""
        self.breaks: list[int] = []
        """For each of the next responses, the number of bytes after which it breaks."""
        self.busy = 0
        """Number of next requests that are answered with 503."""
        self.ranges = True
        self.missing = 404
        """Status code for missing files."""
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def uri(self, name: str = "") -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}" + (f"/{name}" if name else "")


def _handler(web: WebServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

        def do_GET(self) -> None:
            self.close_connection = True
            requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if web.ranges else None
            start = int(requested[1]) if requested else 0
            web.requests.append((self.path, start))
            file = web.folder / self.path.lstrip("/")
            if web.busy:
                web.busy -= 1
                self.send_error(503)
                return
            if not file.is_file():
                self.send_error(web.missing)
                return
            data = file.read_bytes()
            self.send_response(206 if requested else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if requested:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            body = data[start:]
            self.wfile.write(body[: web.breaks.pop(0)] if web.breaks and len(body) > web.breaks[0] else body)

    return Handler
