"""The way in: a dashboard that wants no token is an error, one that is closed or does not tell is one line."""

import http.server
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from landmark.config import UserError
from landmark.diagnostics.dashboard import door_findings, jobs_of
from tests.support.seaweed import free_ports


@contextmanager
def dashboard(code: int) -> Iterator[str]:
    """A server on this machine that answers everything with one code."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def other_service(answer: bytes) -> Iterator[str]:
    """A server on this machine that speaks no HTTP: it answers each connection with these bytes."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def closed() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


def test_a_door_without_a_token_is_an_error_and_a_closed_one_is_well():
    with dashboard(200) as url:
        (found,) = door_findings(url)
    assert found.severity == "error" and url in found.text and "RAY_AUTH_MODE=token" in found.text
    for code in (401, 403):
        with dashboard(code) as url:
            assert door_findings(url) == []
    with dashboard(500) as url:
        (found,) = door_findings(url)
    assert found.severity == "warning" and "500" in found.text
    assert door_findings(closed()) == [] and door_findings(None) == []


def test_a_dashboard_that_does_not_tell_its_jobs_is_one_line():
    with pytest.raises(UserError, match="does not list its jobs") as refused:
        jobs_of(closed())
    assert "\n" not in str(refused.value) and "run this on the head node" in str(refused.value)
    with dashboard(401) as url, pytest.raises(UserError, match="RAY_AUTH_TOKEN") as refused:
        jobs_of(url)
    assert "\n" not in str(refused.value)
    assert jobs_of(None) == []


@pytest.mark.parametrize(
    "answer", [b"\x15\x03\x01\x00\x02\x02\x46", b"SSH-2.0-OpenSSH_9.6\r\n", b""], ids=["TLS alert", "SSH", "hangs up"]
)
def test_a_service_that_speaks_no_http_is_one_line(answer):
    with other_service(answer) as url:
        (found,) = door_findings(url)
        assert found.severity == "warning" and "does not speak plain HTTP" in found.text and "\n" not in found.text
        with pytest.raises(UserError, match="does not list its jobs") as refused:
            jobs_of(url)
    assert "\n" not in str(refused.value)


def test_a_web_service_that_is_no_ray_dashboard_is_one_line():
    with dashboard(200) as url, pytest.raises(UserError, match="does not list its jobs") as refused:
        jobs_of(url)
    assert "\n" not in str(refused.value)
