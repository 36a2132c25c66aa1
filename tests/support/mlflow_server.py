"""A small server of MLflow's REST API for tests that can stop, restart and reject requests."""

import http.server
import json
import threading
import uuid
from typing import Any
from urllib.parse import urlsplit


class MLflowServer:
    """Stores what clients log. `stop` and `start` keep the data and the port, like a restarted server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.experiments: dict[str, str] = {}
        """Names -> ids."""
        self.runs: dict[str, dict[str, Any]] = {}
        """Each run's tags, params, status and metrics: lists of [key, step, value]."""
        self.refused: set[str] = set()
        """Keys of metrics that make a batch a bad request."""
        self.server: http.server.ThreadingHTTPServer | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), _handler(self))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        assert self.server is not None
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and body for a request."""
        name = path.removeprefix("/api/2.0/mlflow/")
        if name == "experiments/get-by-name":
            if body["experiment_name"] not in self.experiments:
                return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
            return 200, {"experiment": {"experiment_id": self.experiments[body["experiment_name"]]}}
        if name == "experiments/create":
            return 200, {"experiment_id": self.experiments.setdefault(body["name"], uuid.uuid4().hex)}
        if name == "runs/create":
            run = uuid.uuid4().hex
            tags = {tag["key"]: tag["value"] for tag in body["tags"]}
            self.runs[run] = {"tags": tags, "params": {}, "metrics": [], "status": "RUNNING"}
            return 200, {"run": {"info": {"run_id": run, "run_uuid": run, "status": "RUNNING"}, "data": {}}}
        run_id = body.get("run_id") or body.get("run_uuid", "")
        if run_id not in self.runs:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}
        found = self.runs[run_id]
        if name == "runs/log-batch":
            metrics = body.get("metrics", [])
            if bad := self.refused & {metric["key"] for metric in metrics}:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": f"bad {bad}"}
            found["params"] |= {param["key"]: param["value"] for param in body.get("params", [])}
            found["metrics"] += [[m["key"], int(m["step"]), m["value"]] for m in metrics]
        elif name == "runs/update":
            found["status"] = body["status"]
        return 200, {"run": {"info": {"run_id": run_id, "run_uuid": run_id, "status": found["status"]}, "data": {}}}


def _handler(mlflow: MLflowServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Log nothing."""

        def _answer(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            parts = urlsplit(self.path)
            query = dict(pair.split("=", 1) for pair in parts.query.split("&") if pair)
            status, found = mlflow.answer(parts.path, {**query, **body})
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

    return Handler
