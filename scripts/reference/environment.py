"""The page of exit codes and environment variables."""

import ast
import re

from scripts.reference.markdown import code, table
from scripts.reference.source import constant, definition, same, sources

EXIT_CODES = {
    0: ("success", "The command did its work, or printed help."),
    1: ("failure", "An error that appeared after the options were read: a missing file, no resources, a failed run."),
    2: ("usage", "A wrong option, argument or configuration value. Nothing was started."),
    75: (
        "stopped, resumable",
        "SIGTERM, `ray job stop`, a preempted node or `--budget.seconds` ended the work. Run the same command again to "
        "resume; `train` and `tune` need `--resume`.",
    ),
    130: ("interrupted", "You pressed Ctrl+C."),
}
"""Exit code -> its name and meaning; must be those of the code."""


VARIABLES = {
    "Storage": {
        "AWS_ACCESS_KEY_ID": "Access key for `s3://` URIs. A role of the machine works, too.",
        "AWS_SECRET_ACCESS_KEY": "Secret key for `s3://` URIs.",
        "AWS_SESSION_TOKEN": "Session token of temporary credentials.",
        "AWS_ENDPOINT_URL": "Endpoint of an S3-compatible store.",
        "AWS_ENDPOINT_URL_S3": "The same, for S3 only. It overrides `AWS_ENDPOINT_URL`.",
        "AWS_REGION": "Region of the bucket. `AWS_DEFAULT_REGION` is used if it is not set.",
        "AWS_DEFAULT_REGION": "Region of the bucket if `AWS_REGION` is not set.",
        "LANDMARK_WEIGHTS": "Folder or URI with weights of `landmark models fetch`. `--weights pretrained` looks there first.",
        "LANDMARK_STORAGE_DEADLINE_S": "Seconds without a byte or an answer after which a storage operation fails. "
        "[default: {DEADLINE_S}]",
        "LANDMARK_STORAGE_OUTAGE_S": "Seconds that storage may be unavailable if it answered this process before. Jobs, runs, "
        "trials and evaluations wait for it. [default: {OUTAGE_S}, or the deadline if only that is set]",
    },
    "Ray": {
        "RAY_ADDRESS": "Address of the Ray cluster if `--address` is not given. Ray sets it in submitted jobs.",
        "RAY_AUTH_MODE": "`token` makes Ray require token authentication. Read by Ray.",
        "RAY_AUTH_TOKEN": "The token. Read by Ray.",
        "RAY_USE_TLS": "Whether Ray's connections use TLS. Read by Ray.",
        "RAY_USAGE_STATS_ENABLED": "Ray's usage statistics. landmark sets it to 0 unless you set it.",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "Seconds between two polls of Ray Train's controller. landmark sets it to "
        "{POLL_S} unless you set it.",
        "RAY_JOB_STOP_WAIT_TIME_S": "Seconds that `ray job stop` gives a job to end. Set it in the job's environment.",
    },
    "Training": {
        "OMP_NUM_THREADS": "Number of compute threads of a training process.",
        "CC": "C compiler for `compute.compile`. [default: gcc, else clang]",
        "GLOO_SOCKET_IFNAME": "Network interface for DDP on CPUs. [default: the interface of the node's address in Ray]",
        "HOROVOD_GLOO_IFACE": "Network interface for Horovod. [default: the interface of the node's address in Ray]",
        "CUBLAS_WORKSPACE_CONFIG": "Workspace of cuBLAS. `compute.deterministic` sets it to `:4096:8` unless you set it.",
    },
    "Installation": {
        "LANDMARK_WHEELS": "Folder in which `scripts/install-horovod.sh` keeps the wheel. "
        "[default: ~/.cache/landmark/wheels]",
        "HOROVOD_GPU_OPERATIONS": "`NCCL` makes `scripts/install-horovod.sh` build for GPUs.",
    },
    "Tests": {
        "LANDMARK_TEST_DATA": "Folder of real photographs for tests and benchmarks. Without it, those tests are skipped.",
    },
}
"""Environment variables by subject; each that the code reads must be here."""


INTERNAL = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_FUNCTION_THREAD_TIMEOUT_S", "TUNE_GLOBAL_CHECKPOINT_S",
    "TUNE_MAX_PENDING_TRIALS_PG", "RAY_AIR_NEW_OUTPUT", "TUNE_PRINT_ALL_TRIAL_ERRORS",
}  # fmt: skip
"""Variables that landmark sets for the libraries below it, and that nobody else should."""


def exit_codes_and_environment() -> str:
    """Return the page of exit codes and environment variables; raises SystemExit if the code has others."""
    used = {0} | {
        node.value
        for function in ("main", "run_with", "run")
        for call in ast.walk(definition(function, "cli/app.py"))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "fail"
        for node in call.args
        if isinstance(node, ast.Constant) and isinstance(node.value, int)
    }
    same("exit codes", used, set(EXIT_CODES))
    known = {name for names in VARIABLES.values() for name in names}
    read = {
        name
        for text in sources().values()
        for name in re.findall(r"""environ(?:\.get\(|\.setdefault\(|\[)\s*"([A-Z][A-Z0-9_]+)\"""", text)
    }
    missing = read - known - INTERNAL
    if missing:
        raise SystemExit(f"scripts/reference: error: not documented in VARIABLES: {', '.join(sorted(missing))}")
    values = {name: constant(name, "storage/") for name in ("DEADLINE_S", "OUTAGE_S")}
    values["POLL_S"] = constant("POLL_S", "training/distributed/ray_train")
    parts = [
        "# Exit codes and environment variables",
        "## Exit codes",
        table(("Code", "Name", "Meaning"), [(str(number), *EXIT_CODES[number]) for number in sorted(used)]),
        "An error is one line on stderr: `landmark COMMAND: error: …`. It names the file, key or row, what was expected, and "
        "how to fix it. [Troubleshooting](../troubleshooting.md) lists the messages.",
        "## Environment variables",
        "Set them in the environment of every process: on a cluster, in the environment of the job or of the nodes. No "
        "configuration file, log or checkpoint stores credentials.",
    ]
    for subject, names in VARIABLES.items():
        parts.append(f"### {subject}")
        rows = []
        for name, text in names.items():
            for key, value in values.items():
                text = text.replace(f"{{{key}}}", value)
            match = re.search(r" \[default: ([^\]]*)\]$", text)
            rows.append((code(name), match[1] if match else "", text[: match.start()] if match else text))
        parts.append(table(("Variable", "Default", "Meaning"), rows))
    return "\n\n".join(parts)
