"""Access to a cluster's dashboard: its jobs, and a check that it requires token authentication."""

import http.client
import urllib.error
import urllib.request
from typing import Any

from ray._private.worker import global_worker
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from landmark.config import UserError
from landmark.diagnostics.checks import Finding

PROBE_TIMEOUT_S = 5.0


def dashboard_url() -> str | None:
    """Return the URL of the connected cluster's dashboard, or None if it has none."""
    dashboard = global_worker.gcs_client.internal_kv_get(b"webui:url", b"dashboard")
    return f"http://{dashboard.decode()}" if dashboard else None


def authentication_findings(url: str | None) -> list[Finding]:
    """Return an error if the dashboard answers without a token: it would run anyone's code (CVE-2023-48022)."""
    if url is None:
        return []
    try:
        # ProxyHandler({}) bypasses proxies: the address is inside the cluster.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/api/jobs/", timeout=PROBE_TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return []
        return [Finding(severity="warning", where="", text=f"the dashboard at {url} returned HTTP {error.code}")]
    except http.client.HTTPException as error:  # TLS, or no web server at all
        text = (
            f"the dashboard at {url} does not speak plain HTTP ({type(error).__name__}); check that it requires a token"
        )
        return [Finding(severity="warning", where="", text=text)]
    except OSError:  # it listens only on the head node, or a firewall blocks it
        return []
    text = f"the dashboard at {url} requires no token: anyone who reaches it can run code; start Ray with RAY_AUTH_MODE=token"
    return [Finding(severity="error", where="", text=text)]


def jobs_of(url: str | None) -> list[Any]:
    """Return Ray's details of the submitted jobs, newest first; raises UserError if the dashboard does not list them."""
    if url is None:
        return []
    try:
        jobs = JobSubmissionClient(url).list_jobs()
    # ValueError, TypeError, LookupError: another service answers at this address.
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the dashboard at {url} does not list its jobs ({reason}); run this on the head node, or check RAY_AUTH_TOKEN"
        ) from None
    return sorted((job for job in jobs if job.submission_id), key=lambda job: -(job.start_time or 0))
