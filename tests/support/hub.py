"""A server with the part of the Hugging Face hub's HTTP interface that downloads of files use."""

import hashlib
import http.server
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves files at OWNER/NAME/resolve/REVISION/FILE, with their hash and commit as headers. Counts the downloads."""

    def __init__(self, files: dict[str, bytes]) -> None:
        """files: content by OWNER/NAME/FILE."""
        self.downloads: list[str] = []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Print nothing."""

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                owner, name, _, _, *file = self.path.lstrip("/").split("/")
                key = "/".join([owner, name, *file])
                data = files.get(key)
                self.send_response(404 if data is None else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                if data is None:
                    self.send_header("X-Error-Code", "EntryNotFound")
                    data = b""
                else:
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if with_body:
                    hub.downloads.append(key)
                    self.wfile.write(data)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
