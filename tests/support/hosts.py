"""Simulate several hosts on one machine: network namespaces, each with a name, address, firewall and disk."""

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
"""Last byte of the router's address in both networks."""
GCS, DASHBOARD, CLIENT = 6379, 8265, 10001
"""Ports of a Ray head: GCS, dashboard with the jobs API, Ray Client."""
STORE_PORTS = [9333, 8080, 8888, 8333]
TOKEN = "a-token-only-for-these-hosts-0123456789abcdef"
NODE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # 15 by default, which starves the workers on a busy machine
    "RAY_memory_monitor_refresh_ms": "0",  # all hosts share one memory: each would kill its own processes
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""Environment of the nodes: Ray declares an unreachable host dead within 9 s (docs/explanation/faults.md)."""
RECORD_STEPS = {"worker_process_setup_hook": "tests.support.witness.record_steps_by_run"}
"""Runtime environment of a job whose workers record their steps."""
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
"""Firewall of the cluster's hosts: it accepts connections only from the cluster's network."""
# A host's own name resolves to loopback, as Debian's installer writes it.
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


def unavailable_reason() -> str | None:
    """Return why hosts cannot be simulated here, or None if they can."""
    missing_tools = [name for name in ("ip", "nft", "unshare") if shutil.which(name) is None]
    if missing_tools:
        return f"no {', '.join(missing_tools)} (scripts/hosts.sh installs it)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    probe = f"landmark-{os.getpid()}-probe"
    created = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if created.returncode:
        return f"network namespaces are not allowed here ({created.stderr.strip()})"
    try:
        rules = subprocess.run(
            ["ip", "netns", "exec", probe, "nft", "-f", "-"], input=FIREWALL, capture_output=True, text=True
        )
        return f"no firewall in a network namespace ({rules.stderr.strip()})" if rules.returncode else None
    finally:
        _ip("netns", "delete", probe)


def _ip(*words: str) -> None:
    completed = subprocess.run(["ip", *words], capture_output=True, text=True)
    assert completed.returncode == 0, f"ip {' '.join(words)}: {completed.stderr}"


class Host:
    """One host: a network namespace with one address, a host name and a folder for files."""

    def __init__(self, name: str, namespace: str, address: str, folder: Path) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self.folder = folder
        """The host's disk: TMPDIR and HOME of its processes."""
        folder.mkdir()
        (folder / "hosts").write_text(NAMES.format(name=name))
        self.environment: dict[str, str] = {}

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs a command on this host."""
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", ENTER, "sh"]
        return [*inside, str(self.folder / "hosts"), self.name, *words]

    def environment_with(self, changes: Mapping[str, str | None]) -> dict[str, str]:
        """Return the environment of the host's processes. None removes a variable."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        plain |= {"PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        # A separate home, so that no token file of this machine's user grants access.
        found = plain | {"TMPDIR": str(self.folder), "HOME": str(self.folder)} | self.environment | dict(changes)
        return {key: value for key, value in found.items() if value is not None}

    def run(self, *words: str, timeout: float = 120, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command on this host and wait for it. changes: environment variables; None removes one."""
        environment = self.environment_with(changes)
        return subprocess.run(
            self.command(*words), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )

    def start(self, *words: str, output: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command on this host. Its output goes to a file."""
        with (output or self.folder / "output.txt").open("ab") as out:
            return subprocess.Popen(
                self.command(*words),
                cwd=ROOT,
                env=self.environment_with({}),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def output(self) -> str:
        """Return the output of the host's servers."""
        file = self.folder / "output.txt"
        return file.read_text(errors="replace") if file.exists() else ""

    def end(self) -> None:
        """Kill every process on this host."""
        end_processes(self.namespace)


def end_processes(namespace: str) -> None:
    """Kill every process in a namespace."""
    for _ in range(100):
        found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True).stdout.split()
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.1)


def remove_stale_hosts() -> None:
    """Remove the namespaces and folders of test processes that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for namespace, pid in re.findall(r"^(landmark-(\d+)-\w+)", listed, re.MULTILINE):
        if not Path(f"/proc/{pid}").exists():
            end_processes(namespace)
            _ip("netns", "delete", namespace)
            for folder in Path("/tmp").glob(f"lm-{pid}-*"):
                shutil.rmtree(folder, ignore_errors=True)


class Hosts:
    """A Ray head, workers with one CPU each, a bucket and a client in one network; an outside host in another.

    The switch is a separate namespace that routes between both networks and nowhere else.
    """

    def __init__(self, workers: int) -> None:
        remove_stale_hosts()
        # Short, because the paths of Ray's sockets are below it and may have at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix=f"lm-{os.getpid()}-", dir="/tmp"))
        self.switch = f"landmark-{os.getpid()}-switch"
        self._namespaces: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.hosts: list[Host] = []
        self._disconnected: list[Host] = []
        self.bucket: Seaweed | None = None
        try:
            self._build(workers)
        except BaseException:
            self.close()
            raise

    def _build(self, workers: int) -> None:
        self._add_namespace(self.switch)
        for bridge, net in (("cluster", CLUSTER_NET), ("other", OTHER_NET)):
            self._in_switch("ip", "link", "add", bridge, "type", "bridge")
            self._in_switch("ip", "address", "add", f"{net}.{ROUTER}/24", "dev", bridge)
            self._in_switch("ip", "link", "set", bridge, "up")
        self._in_switch("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self.head = self._add_host("head", CLUSTER_NET, 1)
        self.workers = [self._add_host(f"worker{number}", CLUSTER_NET, 10 + number) for number in range(1, workers + 1)]
        self.store = self._add_host("store", CLUSTER_NET, 100)
        self.client = self._add_host("client", CLUSTER_NET, 200)
        """The host that submits jobs: in the allowed network, but not a node of the cluster."""
        self.outsider = self._add_host("outsider", OTHER_NET, 1)
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
        self.client.environment = bucket | token
        self.store.environment = bucket
        # The outside host also knows the token: only the firewall keeps it out.
        self.outsider.environment = token

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-netns", name, "link", "set", "lo", "up")

    def _in_switch(self, *words: str) -> None:
        completed = subprocess.run(["ip", "netns", "exec", self.switch, *words], capture_output=True, text=True)
        assert completed.returncode == 0, f"{' '.join(words)}: {completed.stderr}"

    def _add_host(self, name: str, net: str, number: int) -> Host:
        namespace = f"landmark-{os.getpid()}-{name}"
        self._add_namespace(namespace)
        _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", name, "netns", self.switch)
        bridge = "cluster" if net == CLUSTER_NET else "other"
        self._in_switch("ip", "link", "set", name, "master", bridge, "up")
        _ip("-netns", namespace, "address", "add", f"{net}.{number}/24", "dev", "eth0")
        _ip("-netns", namespace, "link", "set", "eth0", "up")
        _ip("-netns", namespace, "route", "add", "default", "via", f"{net}.{ROUTER}")
        self.hosts.append(Host(name, namespace, f"{net}.{number}", self.folder / name))
        return self.hosts[-1]

    @property
    def dashboard(self) -> str:
        """Address of the dashboard and the jobs API."""
        return f"http://{self.head.address}:{DASHBOARD}"

    def start(self) -> None:
        """Start the bucket, the head and the workers. Returns when all of them are up."""
        options = {"prefix": self.store.command(), "environment": self.store.environment_with({})}
        self.bucket = Seaweed(self.store.folder, STORE_PORTS, self.store.address, **options)
        self._start_node(
            self.head,
            *("--head", f"--port={GCS}", f"--dashboard-host={self.head.address}", f"--dashboard-port={DASHBOARD}"),
            *(f"--ray-client-server-port={CLIENT}", "--num-cpus=0"),
        )
        self.bucket.start()
        wait_for(lambda: self.nodes() == {self.head.address}, self.head.output)
        for worker in self.workers:
            self.join(worker)
        all_addresses = {host.address for host in (self.head, *self.workers)}
        wait_for(lambda: self.nodes() == all_addresses, lambda: "".join(host.output() for host in self.hosts))

    def join(self, worker: Host) -> None:
        """Start the Ray node of a worker host."""
        self._start_node(worker, f"--address={self.head.address}:{GCS}", "--num-cpus=1")

    def _start_node(self, host: Host, *options: str) -> None:
        common = ["--block", f"--node-ip-address={host.address}", f"--temp-dir={host.folder / 'ray'}"]
        common += ["--object-store-memory=120000000", "--disable-usage-stats"]
        self._processes.append(host.start(RAY, "start", *common, *options))

    def nodes(self) -> set[str]:
        """Return the addresses of the nodes that the head considers alive; empty while the head does not answer."""
        completed = self.client.run(sys.executable, "-c", ALIVE, f"{self.dashboard}/api/v0/nodes")
        return set(completed.stdout.split())

    def disconnect(self, host: Host) -> None:
        """Disconnect a host: its packets are dropped without notice."""
        self._in_switch("ip", "link", "set", host.name, "down")
        self._disconnected.append(host)

    def reconnect(self) -> None:
        """Reconnect all hosts and restart their Ray nodes."""
        while self._disconnected:
            host = self._disconnected.pop()
            host.end()
            self._in_switch("ip", "link", "set", host.name, "up")
            self.join(host)
            wait_for(lambda host=host: host.address in self.nodes(), host.output)

    def dropped_packets(self, host: Host) -> int:
        """Return how many packets a host's firewall has dropped."""
        rules = host.run("nft", "list", "chain", "inet", "cluster", "input").stdout
        return int(re.findall(r"counter packets (\d+)", rules)[0])

    def put(self, folder: Path, uri: str) -> None:
        """Copy a folder to the bucket."""
        completed = self.client.run(sys.executable, "-c", PUT, str(folder), uri)
        assert completed.returncode == 0, completed.stderr

    def get(self, uri: str) -> str:
        """Return the text of a file in the bucket."""
        completed = self.client.run(sys.executable, "-c", GET, uri)
        assert completed.returncode == 0, completed.stderr
        return completed.stdout

    @property
    def code(self) -> Path:
        """The working directory of jobs: this checkout's packages and additional files."""
        folder = self.client.folder / "code"
        if not folder.exists():
            shutil.copytree(ROOT / "landmark", folder / "landmark", ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("__init__.py", "support/__init__.py", "support/witness.py"):
                (folder / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
        return folder

    def submission(self, *command: str) -> list[str]:
        """Return the command that submits a job and waits for it. The job's workers record their steps."""
        words = [RAY, "job", "submit", "--address", self.dashboard, "--working-dir", str(self.code)]
        return [*words, "--runtime-env-json", json.dumps(RECORD_STEPS), "--", *command]

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
        """Kill every process, and delete the namespaces with their links."""
        for host in self.hosts:
            host.end()
        for process in self._processes:
            process.wait(10)
        if self.bucket is not None:
            self.bucket.stop()
        for namespace in reversed(self._namespaces):
            _ip("netns", "delete", namespace)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_for(condition: Callable[[], bool], message: Callable[[], str], seconds: float = 120) -> None:
    """Wait until a condition holds. Fails with a message after a timeout."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)
