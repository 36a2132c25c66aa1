"""Control of Ray Data's executor: how often it looks for work, and how far readers and decoders work ahead."""

import time

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
    BackpressurePolicy,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.streaming_executor import StreamingExecutor

STEP_S = 0.1
"""Minimum interval between two steps of the executor, seconds."""
BLOCKS_AHEAD = 8
"""Blocks that a reader finishes before the executor takes them, in a stream without decoders."""
DECODED_BLOCKS_AHEAD = 2
"""Blocks that a reader or decoder finishes before the executor takes them, in a stream with decoders."""
QUEUED_BLOCKS = 8
"""Blocks that wait for decoders, and decoded blocks that wait for the training process."""
RELEASE_S = 3600.0
"""Interval between two blocks that an executor takes against its limits because no actor works, seconds."""


class PacedSteps(ExecutionCallback):
    """Limits how often the executor looks for work.

    While the training process is slower than the readers, blocks are ready and the executor may not take them. It then
    repeats its step without a pause, which takes half of the Python interpreter from the training process.
    """

    def __init__(self) -> None:
        self._stepped = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Wait for the rest of the interval."""
        time.sleep(max(0.0, self._stepped + STEP_S - time.monotonic()))
        self._stepped = time.monotonic()


class QueuedBlocks(BackpressurePolicy):
    """Limits the blocks between readers, decoders and the training process by their number.

    Ray Data's own limit is bytes of the store per operator. It fails for two operators in order: the blocks of later
    calls use all bytes, and a block of the first call is not taken. Ray Data then takes a block per step against the
    limit, also from the readers, whose blocks fill the store while training is slower than decoding.
    """

    def can_add_input(self, op: PhysicalOperator) -> bool:
        """Return whether a decoder may start. Its blocks are always taken."""
        if not isinstance(op, ActorPoolMapOperator) or op.output_dependencies:
            return True
        return self._topology[op].total_enqueued_output_blocks() < QUEUED_BLOCKS

    def max_task_output_bytes_to_read(self, op: PhysicalOperator) -> int | None:
        """Return 0 if enough blocks of readers wait for decoders. Of later parts, take a block per step."""
        if not isinstance(op, ActorPoolMapOperator) or not op.output_dependencies:
            return None
        if self._topology[op.output_dependencies[0]].total_enqueued_input_blocks() >= QUEUED_BLOCKS:
            return 0
        return 1 if op.internal_output_queue_num_blocks() >= QUEUED_BLOCKS else None


def control(context: DataContext, *, decoders: bool) -> None:
    """Set the control of a stream, with or without decoders."""
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, PacedSteps]
    context.memory_usage_poll_interval_s = None  # it walks over an actor's pages every second
    context._max_num_blocks_in_streaming_gen_buffer = DECODED_BLOCKS_AHEAD if decoders else BLOCKS_AHEAD
    if decoders:
        context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [QueuedBlocks])
        context.op_resource_reservation_enabled = False
        context.output_backpressure_guard_release_interval_s = RELEASE_S
