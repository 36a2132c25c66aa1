"""Experiment trackers, which never stop, slow down or silence runs and studies."""
