"""Trials: how one runs, the resources that it needs, and the test of its model."""
