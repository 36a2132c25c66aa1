"""Several hosts on one machine: network namespaces on a bridge, each with its own name, address, firewall and disk."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.seaweed import Seaweed

ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sysconfig.get_path("scripts")) / "ray")
CLUSTER_NET, OTHER_NET = "10.77.0", "10.78.0"
ROUTER = 254
"""Last byte of the router's address in both nets."""
GCS, DASHBOARD, CLIENT = 6379, 8265, 10001
"""Ports of a Ray head: its control store, the dashboard with the jobs API, Ray Client."""
STORE_PORTS = [9333, 8080, 8888, 8333]
TOKEN = "a-token-for-these-hosts-alone-0123456789abcdef"
NODE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default: where others are busy, too, nothing moves
    "RAY_memory_monitor_refresh_ms": "0",  # the hosts share a memory: each would end its own processes for what others use
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""Environment of the nodes: a host that is silent is taken for lost within 9 s (docs/explanation/faults.md)."""
WITNESSED = {"worker_process_setup_hook": "tests.support.witness.write_down_by_run"}
"""Runtime environment of a job whose workers write down their steps."""
FIREWALL = f"""
table inet cluster {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iif "lo" accept
        ct state established,related accept
        ip saddr {CLUSTER_NET}.0/24 accept
        counter drop
    }}
}}
"""
"""What a host of the cluster lets in: the cluster's net alone."""
# A host's own name leads to loopback, as Debian's installer writes it.
NAMES = "127.0.0.1 localhost\n127.0.1.1 {name}\n"
ALIVE = """
import json, os, sys, urllib.request
token = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers=token), timeout=10) as answer:
    found = json.load(answer)["data"]["result"]["result"]
print(*(node["node_ip"] for node in found if node["state"] == "ALIVE"))
"""
PUT = """
import pathlib, sys
from landmark.storage import locate
folder = pathlib.Path(sys.argv[1])
for path in sorted(path for path in folder.rglob("*") if path.is_file()):
    (locate(sys.argv[2]) / path.relative_to(folder).as_posix()).upload(path)
"""
GET = "import sys; from landmark.storage import locate; print(locate(sys.argv[1]).read_text())"
ENTER = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'


def missing() -> str | None:
    """Return why there can be no hosts here, or None where there can."""
    lacking = [name for name in ("ip", "nft", "unshare") if shutil.which(name) is None]
    if lacking:
        return f"no {', '.join(lacking)} (scripts/hosts.sh installs it)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"landmark-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode:
        return f"network namespaces are not allowed here ({made.stderr.strip()})"
    try:
        rules = subprocess.run(
            ["ip", "netns", "exec", probe, "nft", "-f", "-"], input=FIREWALL, capture_output=True, text=True
        )
        return f"no firewall in a network namespace ({rules.stderr.strip()})" if rules.returncode else None
    finally:
        _ip("netns", "delete", probe)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Host:
    """One host: a namespace with one address, whose processes have a host name and a folder for files of their own."""

    def __init__(self, name: str, space: str, address: str, folder: Path) -> None:
        self.name = name
        self.space = space
        self.address = address
        self.folder = folder
        """Its disk: TMPDIR and HOME of its processes."""
        folder.mkdir()
        (folder / "hosts").write_text(NAMES.format(name=name))
        self.environment: dict[str, str] = {}

    def command(self, *words: str) -> list[str]:
        """Return a command as it is run on this host."""
        inside = ["ip", "netns", "exec", self.space, "unshare", "--uts", "sh", "-c", ENTER, "sh"]
        return [*inside, str(self.folder / "hosts"), self.name, *words]

    def environment_with(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Return the environment of its processes; None takes a variable away."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        plain |= {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        # A home of its own, so that no token file of this machine's user lets anybody in.
        found = plain | {"TMPDIR": str(self.folder), "HOME": str(self.folder)} | self.environment | dict(changes)
        return {key: value for key, value in found.items() if value is not None}

    def run(self, *words: str, timeout: float = 120, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end; changes: of its environment, None takes a variable away."""
        environment = self.environment_with(changes)
        return subprocess.run(
            self.command(*words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )

    def start(self, *words: str, said: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command on this host; what it says goes to a file."""
        with (said or self.folder / "said.txt").open("ab") as out:
            return subprocess.Popen(
                self.command(*words),
                cwd=ROOT,
                env=self.environment_with({}),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def said(self) -> str:
        """Return what its servers said."""
        file = self.folder / "said.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def end(self) -> None:
        """End every process on this host."""
        end_processes(self.space)


def end_processes(space: str) -> None:
    """End every process in a namespace."""
    for _ in range(100):
        found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)


def sweep() -> None:
    """Take away what is left of hosts whose process was killed before it could."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for space, pid in re.findall(r"^(landmark-(\d+)-\w+)", listed, re.MULTILINE):
        if not Path(f"/proc/{pid}").exists():
            end_processes(space)
            _ip("netns", "delete", space)
            for folder in Path("/tmp").glob(f"lm-{pid}-*"):
                shutil.rmtree(folder, ignore_errors=True)


class Hosts:
    """A Ray head, workers of one CPU each, a bucket and a place to submit from in one net; a stranger in another.

    The switch between them is a namespace of its own that routes between both nets and leads nowhere else.
    """

    def __init__(self, workers: int) -> None:
        sweep()
        # Short: the paths of Ray's sockets are below it, and have 107 bytes at most.
        self.folder = Path(tempfile.mkdtemp(prefix=f"lm-{os.getpid()}-", dir="/tmp"))
        self.switch = f"landmark-{os.getpid()}-switch"
        self._spaces: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.hosts: list[Host] = []
        self._cut_off: list[Host] = []
        self.bucket: Seaweed | None = None
        try:
            self._build(workers)
        except BaseException:
            self.close()
            raise

    def _build(self, workers: int) -> None:
        self._add_space(self.switch)
        for bridge, net in (("cluster", CLUSTER_NET), ("other", OTHER_NET)):
            self._in_switch("ip", "link", "add", bridge, "type", "bridge")
            self._in_switch("ip", "address", "add", f"{net}.{ROUTER}/24", "dev", bridge)
            self._in_switch("ip", "link", "set", bridge, "up")
        self._in_switch("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.head = self._add_host("head", CLUSTER_NET, 1)
        self.workers = [self._add_host(f"worker{number}", CLUSTER_NET, 10 + number) for number in range(1, workers + 1)]
        self.store = self._add_host("store", CLUSTER_NET, 100)
        self.desk = self._add_host("desk", CLUSTER_NET, 200)
        """Where the person who submits sits: in the allowed net, no node of the cluster."""
        self.stranger = self._add_host("stranger", OTHER_NET, 1)
        for host in (self.head, *self.workers, self.store):
            loaded = subprocess.run(host.command("nft", "-f", "-"), input=FIREWALL, capture_output=True, text=True)
            assert loaded.returncode == 0, loaded.stderr
        bucket = {
            "AWS_ACCESS_KEY_ID": "landmark-test",
            "AWS_SECRET_ACCESS_KEY": "landmark-test-secret",
            "AWS_ENDPOINT_URL": f"http://{self.store.address}:{STORE_PORTS[3]}",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        for host in (self.head, *self.workers):
            host.environment = bucket | token | NODE
        self.desk.environment = bucket | token
        self.store.environment = bucket
        # The stranger knows the token, too: only the firewall keeps it out.
        self.stranger.environment = token

    def _add_space(self, name: str) -> None:
        _ip("netns", "add", name)
        self._spaces.append(name)
        _ip("-netns", name, "link", "set", "lo", "up")

    def _in_switch(self, *words: str) -> None:
        done = subprocess.run(["ip", "netns", "exec", self.switch, *words], capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"

    def _add_host(self, name: str, net: str, number: int) -> Host:
        space = f"landmark-{os.getpid()}-{name}"
        self._add_space(space)
        _ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", name, "netns", self.switch)
        bridge = "cluster" if net == CLUSTER_NET else "other"
        self._in_switch("ip", "link", "set", name, "master", bridge, "up")
        _ip("-netns", space, "address", "add", f"{net}.{number}/24", "dev", "eth0")
        _ip("-netns", space, "link", "set", "eth0", "up")
        _ip("-netns", space, "route", "add", "default", "via", f"{net}.{ROUTER}")
        self.hosts.append(Host(name, space, f"{net}.{number}", self.folder / name))
        return self.hosts[-1]

    @property
    def dashboard(self) -> str:
        """Address of the dashboard and the jobs API."""
        return f"http://{self.head.address}:{DASHBOARD}"

    def start(self) -> None:
        """Start the bucket, the head and the workers; returns when all of them are there."""
        at = {"inside": self.store.command(), "environment": self.store.environment_with({})}
        self.bucket = Seaweed(self.store.folder, STORE_PORTS, self.store.address, **at)
        self._start_node(
            self.head,
            *("--head", f"--port={GCS}", f"--dashboard-host={self.head.address}", f"--dashboard-port={DASHBOARD}"),
            *(f"--ray-client-server-port={CLIENT}", "--num-cpus=0"),
        )
        self.bucket.start()
        wait_for(lambda: self.nodes() == {self.head.address}, self.head.said)
        for worker in self.workers:
            self.join(worker)
        everyone = {host.address for host in (self.head, *self.workers)}
        wait_for(lambda: self.nodes() == everyone, lambda: "".join(host.said() for host in self.hosts))

    def join(self, worker: Host) -> None:
        """Start a worker's node."""
        self._start_node(worker, f"--address={self.head.address}:{GCS}", "--num-cpus=1")

    def _start_node(self, host: Host, *options: str) -> None:
        common = ["--block", f"--node-ip-address={host.address}", f"--temp-dir={host.folder / 'ray'}"]
        common += ["--object-store-memory=120000000", "--disable-usage-stats"]
        self._processes.append(host.start(RAY, "start", *common, *options))

    def nodes(self) -> set[str]:
        """Return the addresses of the nodes that the head takes for alive; none while it does not answer."""
        done = self.desk.run(sys.executable, "-c", ALIVE, f"{self.dashboard}/api/v0/nodes")
        return set(done.stdout.split())

    def cut(self, host: Host) -> None:
        """Pull a host's cable: what it sends goes nowhere, and nobody is told."""
        self._in_switch("ip", "link", "set", host.name, "down")
        self._cut_off.append(host)

    def mend(self) -> None:
        """Put all cables back, and start the nodes of those hosts anew."""
        while self._cut_off:
            host = self._cut_off.pop()
            host.end()
            self._in_switch("ip", "link", "set", host.name, "up")
            self.join(host)
            wait_for(lambda host=host: host.address in self.nodes(), host.said)

    def dropped(self, host: Host) -> int:
        """Return how many packets a host's firewall has kept out."""
        rules = host.run("nft", "list", "chain", "inet", "cluster", "input").stdout
        return int(re.findall(r"counter packets (\d+)", rules)[0])

    def put(self, folder: Path, uri: str) -> None:
        """Copy a folder to the bucket."""
        done = self.desk.run(sys.executable, "-c", PUT, str(folder), uri)
        assert done.returncode == 0, done.stderr

    def get(self, uri: str) -> str:
        """Return a file's text out of the bucket."""
        done = self.desk.run(sys.executable, "-c", GET, uri)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def code(self) -> Path:
        """The working directory that jobs bring: this checkout's packages, and what is put beside them."""
        folder = self.desk.folder / "code"
        if not folder.exists():
            for package in ("landmark", "tune_spaces"):
                shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
            (folder / "tests").mkdir()
            for name in ("__init__.py", "witness.py"):
                shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
        return folder

    def submission(self, *command: str) -> list[str]:
        """Return the command that submits a job from the desk and waits for its end; its workers write down their steps."""
        words = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", str(self.code)]
        return [*words, "--runtime-env-json", json.dumps(WITNESSED), "--", *command]

    def __enter__(self) -> "Hosts":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process, and take the namespaces away with their links."""
        for host in self.hosts:
            host.end()
        for process in self._processes:
            process.wait(10)
        if self.bucket is not None:
            self.bucket.stop()
        for space in reversed(self._spaces):
            _ip("netns", "delete", space)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_for(come: Callable[[], bool], told: Callable[[], str], seconds: float = 120) -> None:
    """Wait until something has come; fails with what is told."""
    deadline = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)
