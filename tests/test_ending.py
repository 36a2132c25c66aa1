"""Tests that every entry point exits in the same way, even if a thread hangs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_entry_point_exits_in_the_same_way():
    exits = {}
    for path in (ROOT / "landmark").rglob("*.py"):
        text = path.read_text()
        if '__name__ == "__main__"' in text:
            guard = ast.parse(text).body[-1]
            assert isinstance(guard, ast.If)
            exits[str(path.relative_to(ROOT / "landmark"))] = ast.unparse(guard.body)
    assert exits == {
        "__main__.py": "main()",
        "train.py": "end(main(['train', *sys.argv[1:]]))",
        "tune.py": "end(main(['tune', *sys.argv[1:]]))",
    }


def test_a_hanging_call_does_not_keep_the_process_alive():
    code = (
        "import threading; from landmark.cli import end; from landmark.storage import retrying, TransientStorageError\n"
        "def hang():\n"
        "    threading.Thread(target=threading.Event().wait).start()\n"  # Python waits for such threads of a client
        "    threading.Event().wait()\n"
        "try: retrying('s3://bucket/x', hang)\n"
        "except TransientStorageError as error: print(error); end(7)\n"
    )
    environment = os.environ | {"LANDMARK_STORAGE_DEADLINE_S": "0.3"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 7 and "no response for 0.3 s" in done.stdout
