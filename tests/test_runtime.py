"""The connection to Ray: a cluster that is not there is one line."""

import subprocess
import sys
from pathlib import Path

from landmark.config import UserError
from landmark.runtime import own_error
from landmark.storage import NotFound, TransientStorageError

ROOT = Path(__file__).parent.parent


def test_a_cluster_that_is_not_there_is_one_line(tmp_path):
    code = (
        "from landmark.cli import main; import sys;"
        f"sys.exit(main(['prepare', '--output', {str(tmp_path / 'd')!r}, '--cluster.address', '127.0.0.1:9']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("landmark prepare: error: no Ray cluster at 127.0.0.1:9 (")
    assert "RAY_AUTH_TOKEN" in done.stderr and done.stderr.count("\n") == 1


def test_an_error_of_a_worker_keeps_its_class_in_rays_text():
    wrapped = "ray::map() (pid=1)\n  File ...\n{}: s3://b/x: busy\nThe above exception was ..."
    for kind in (UserError, NotFound, TransientStorageError):
        own = own_error(RuntimeError(wrapped.format(f"{kind.__module__}.{kind.__qualname__}")))
        assert type(own) is kind and str(own) == "s3://b/x: busy"
    assert own_error(RuntimeError(wrapped.format("landmark.storage.errors.Unanswered"))) is None
    assert own_error(RuntimeError("ValueError: landmark.x")) is None
