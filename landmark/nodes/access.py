"""The way into a cluster: its dashboard, through which whoever may speak to it runs code, and its jobs."""

import http.client
import urllib.error
import urllib.request
from typing import Any

from ray._private.worker import global_worker
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from landmark.config import UserError
from landmark.nodes.findings import Finding

KNOCK_TIMEOUT_S = 5.0


def dashboard_url() -> str | None:
    """Return the dashboard's address in the connected cluster, or None where it has none."""
    told = global_worker.gcs_client.internal_kv_get(b"webui:url", b"dashboard")
    return f"http://{told.decode()}" if told else None


def door_findings(url: str | None) -> list[Finding]:
    """Return an error where the dashboard answers without a token from here: then it runs anyone's code (CVE-2023-48022)."""
    if url is None:
        return []
    try:
        # ProxyHandler({}): the cluster's own address is no matter of a proxy's.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/api/jobs/", timeout=KNOCK_TIMEOUT_S):
            pass
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return []
        return [Finding(severity="warning", where="", text=f"the dashboard at {url} answers with {error.code}")]
    except http.client.HTTPException as error:  # TLS, or no web server at all
        text = f"the dashboard at {url} does not answer in plain HTTP ({type(error).__name__}); check that it requires a token"
        return [Finding(severity="warning", where="", text=text)]
    except OSError:  # it listens on the head alone, or a firewall is before it: closed
        return []
    text = (
        f"the dashboard at {url} needs no token: whoever reaches it runs code here; start Ray with RAY_AUTH_MODE=token"
    )
    return [Finding(severity="error", where="", text=text)]


def jobs_of(url: str | None) -> list[Any]:
    """Return the submitted jobs, the newest first, as Ray describes them; raises UserError where the dashboard does not tell."""
    if url is None:
        return []
    try:
        jobs = JobSubmissionClient(url).list_jobs()
    # ValueError, TypeError, LookupError: another service answers, in JSON or not.
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the dashboard at {url} does not tell its jobs ({reason}); ask from the head, or check RAY_AUTH_TOKEN"
        ) from None
    return sorted((job for job in jobs if job.submission_id), key=lambda job: -(job.start_time or 0))
