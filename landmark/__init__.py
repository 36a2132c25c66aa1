"""Trains landmark recognisers on a Ray cluster: prepare, train, tune, evaluate, report."""

__version__ = "0.1.0"
