"""What a run reserves: CPUs that feed its GPUs, whole GPUs for several processes, and advice that can be followed."""

import dataclasses

import pytest

from landmark.config import WorkersConfig
from landmark.training.distributed.capacity import Need, advice, count_fitting, derived_cpus

ONE = Need(workers=1, cpus=1.0, gpus=1.0, readers=0, reader_cpus=0.25)
EIGHT = dataclasses.replace(ONE, workers=8, readers=8)


@pytest.mark.parametrize(
    ("need", "nodes", "cpus"),
    [
        (ONE, [(8.0, 1.0)], 8),
        (ONE, [(4.0, 0.0), (96.0, 8.0), (48.0, 8.0)], 6),  # the node that has the fewest per GPU
        (EIGHT, [(64.0, 8.0)], 7),  # readers need room, too
        (EIGHT, [(64.0, 8.0), (16.0, 0.0)], 8),  # which another node has
        (dataclasses.replace(ONE, gpus=2.0), [(64.0, 8.0)], 16),
        (dataclasses.replace(ONE, gpus=0.25), [(8.0, 1.0)], 2),
        (ONE, [(1.0, 1.0)], 1),
    ],
)
def test_a_process_with_gpus_has_its_share_of_the_nodes_cpus(need, nodes, cpus):
    assert derived_cpus(need, nodes) == cpus
    most = 100
    fitting = [count_fitting(dataclasses.replace(need, cpus=float(value)), nodes, most) for value in (1, cpus)]
    assert fitting[0] == fitting[1]


def test_advice_for_several_processes_never_shares_a_gpu():
    text = advice(dataclasses.replace(EIGHT, workers=4, readers=0), [(64.0, 2.0)])
    assert "lower workers.gpus to 0" in text and "0.5" not in text and "0.25" not in text
    assert "lower workers.gpus to 0.5" in advice(ONE, [(8.0, 0.5)])


@pytest.mark.parametrize(("count", "gpus"), [(2, 0.5), ("1:4", 0.25), (1, 1.5)])
def test_parts_of_a_gpu_that_no_run_can_use_are_refused(count, gpus):
    with pytest.raises(ValueError, match="workers.gpus is"):
        WorkersConfig(count=count, gpus=gpus)
    assert WorkersConfig(count=1, gpus=0.5).gpus == 0.5 and WorkersConfig(count=4, gpus=2.0).gpus == 2.0
