"""Checkpoints: their format, and the store of a run."""
