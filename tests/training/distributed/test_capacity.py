"""Tests the resources that a run reserves: CPUs per GPU, whole GPUs for several workers, and advice in errors."""

import dataclasses

import pytest

from landmark.config import WorkersConfig
from landmark.training.distributed.capacity import ResourceRequest, advice, count_fitting, derived_cpus

ONE = ResourceRequest(workers=1, cpus=1.0, gpus=1.0, readers=0, reader_cpus=0.25)
EIGHT = dataclasses.replace(ONE, workers=8, readers=8)


@pytest.mark.parametrize(
    ("required", "nodes", "cpus"),
    [
        (ONE, [(8.0, 1.0)], 8),
        (ONE, [(4.0, 0.0), (96.0, 8.0), (48.0, 8.0)], 6),  # the node with the fewest CPUs per GPU
        (EIGHT, [(64.0, 8.0)], 7),  # readers need CPUs, too
        (EIGHT, [(64.0, 8.0), (16.0, 0.0)], 8),  # another node has CPUs for the readers
        (dataclasses.replace(ONE, gpus=2.0), [(64.0, 8.0)], 16),
        (dataclasses.replace(ONE, gpus=0.25), [(8.0, 1.0)], 2),
        (ONE, [(1.0, 1.0)], 1),
    ],
)
def test_a_gpu_worker_gets_its_fraction_of_the_node_cpus(required, nodes, cpus):
    assert derived_cpus(required, nodes) == cpus
    max_count = 100
    fitting = [count_fitting(dataclasses.replace(required, cpus=float(value)), nodes, max_count) for value in (1, cpus)]
    assert fitting[0] == fitting[1]


def test_advice_for_several_workers_never_shares_a_gpu():
    text = advice(dataclasses.replace(EIGHT, workers=4, readers=0), [(64.0, 2.0)])
    assert "lower workers.gpus to 0" in text and "0.5" not in text and "0.25" not in text
    assert "lower workers.gpus to 0.5" in advice(ONE, [(8.0, 0.5)])


@pytest.mark.parametrize(("count", "gpus"), [(2, 0.5), ("1:4", 0.25), (1, 1.5)])
def test_gpu_fractions_that_no_run_can_use_are_refused(count, gpus):
    with pytest.raises(ValueError, match="workers.gpus is"):
        WorkersConfig(count=count, gpus=gpus)
    assert WorkersConfig(count=1, gpus=0.5).gpus == 0.5 and WorkersConfig(count=4, gpus=2.0).gpus == 2.0
