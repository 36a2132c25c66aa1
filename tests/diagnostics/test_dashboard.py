"""Tests that a dashboard without token authentication is an error, and that an unreachable one is a one-line error."""

import http.server
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from landmark.config import UserError
from landmark.diagnostics.dashboard import authentication_findings, jobs_of
from tests.support.seaweed import free_ports


@contextmanager
def dashboard(code: int) -> Iterator[str]:
    """Run a local server that answers every request with one status code."""

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
    """Run a local server that does not speak HTTP: it answers each connection with fixed bytes."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65_536)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def closed_url() -> str:
    return f"http://127.0.0.1:{free_ports(1)[0]}"


def test_a_dashboard_without_token_authentication_is_an_error():
    with dashboard(200) as url:
        (found,) = authentication_findings(url)
    assert found.severity == "error" and url in found.text and "RAY_AUTH_MODE=token" in found.text
    for code in (401, 403):
        with dashboard(code) as url:
            assert authentication_findings(url) == []
    with dashboard(500) as url:
        (found,) = authentication_findings(url)
    assert found.severity == "warning" and "500" in found.text
    assert authentication_findings(closed_url()) == [] and authentication_findings(None) == []


def test_a_dashboard_that_does_not_list_its_jobs_is_a_one_line_error():
    with pytest.raises(UserError, match="does not list its jobs") as error:
        jobs_of(closed_url())
    assert "\n" not in str(error.value) and "run this on the head node" in str(error.value)
    with dashboard(401) as url, pytest.raises(UserError, match="RAY_AUTH_TOKEN") as error:
        jobs_of(url)
    assert "\n" not in str(error.value)
    assert jobs_of(None) == []


@pytest.mark.parametrize(
    "answer", [b"\x15\x03\x01\x00\x02\x02\x46", b"SSH-2.0-OpenSSH_9.6\r\n", b""], ids=["TLS alert", "SSH", "hangs up"]
)
def test_a_service_that_does_not_speak_http_is_one_line(answer):
    with other_service(answer) as url:
        (found,) = authentication_findings(url)
        assert found.severity == "warning" and "does not speak plain HTTP" in found.text and "\n" not in found.text
        with pytest.raises(UserError, match="does not list its jobs") as error:
            jobs_of(url)
    assert "\n" not in str(error.value)


def test_a_web_service_other_than_ray_is_a_one_line_error():
    with dashboard(200) as url, pytest.raises(UserError, match="does not list its jobs") as error:
        jobs_of(url)
    assert "\n" not in str(error.value)
