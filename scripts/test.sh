#!/usr/bin/env bash
# All tests: those of several processes, which often wait, and beside them all others, which give way. With arguments: pytest with these.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
if [ $# -gt 0 ]; then
    exec .venv/bin/python -m pytest "$@"
fi
output=$(mktemp)
nice -n 10 .venv/bin/python -m pytest -o cache_dir=.pytest_cache/others --ignore=tests/integration >"$output" 2>&1 &
others=$!
trap 'kill "$others" 2>/dev/null; rm -f "$output"' EXIT
.venv/bin/python -m pytest tests/integration
integration=$?
wait "$others"
rest=$?
trap - EXIT
cat "$output"
rm -f "$output"
exit $((integration ? integration : rest))
