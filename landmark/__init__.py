"""Trains landmark recognisers on a Ray cluster: prepare, train, tune, evaluate, report."""

import gc

__version__ = "0.1.0"

# torch and Ray leave half a million objects that live as long as the process: Python's default threshold goes through all
# of them again and again while more are imported, a fifth of the time until a command begins.
gc.set_threshold(50_000, 20, 100)
