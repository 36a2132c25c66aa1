"""Training: optimizers and schedules, the loop, checkpoints, the sessions and backends it runs in."""
