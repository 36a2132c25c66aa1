"""Tests that a run records its metrics even if TensorBoard fails."""

from tests.support.event_files import read_events, run_script

FULL_DISK = """
import resource, sys
from landmark.storage import locate
from landmark.training.observe.recorder import Recorder
lines = []
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
recorder = Recorder(locate(sys.argv[1]), tensorboard=True, tell=lines.append)
for epoch in range(1, 6):
    recorder.add({"epoch": epoch, "val_top1": epoch / 10})
recorder.close()
assert len(lines) == 2 and "File too large" in lines[0] and "6 entries could not be written" in lines[1], lines
"""


def test_a_run_continues_when_tensorboard_cannot_write(tmp_path):
    done = run_script(FULL_DISK, tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (tmp_path / "history.csv").read_text().splitlines() == [
        "epoch,val_top1",
        *(f"{epoch},{epoch / 10}" for epoch in range(1, 6)),
    ]


def test_every_epoch_is_in_the_file(tmp_path):
    from landmark.storage import locate
    from landmark.training.observe.recorder import Recorder

    recorder = Recorder(locate(tmp_path), tensorboard=True)
    for epoch in range(1, 4):
        recorder.add({"epoch": epoch, "val_top1": epoch / 10})
    recorder.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert [event.step for event in read_events(file) if event.summary.value[0].tag == "val_top1"] == [1, 2, 3]
