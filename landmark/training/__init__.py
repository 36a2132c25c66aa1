"""Training: optimizers and schedules, the training loop, checkpoints, sessions and backends."""
