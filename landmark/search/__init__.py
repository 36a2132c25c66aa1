"""Hyperparameter search: search spaces, schedulers that stop trials early, and studies that Ray Tune runs."""
