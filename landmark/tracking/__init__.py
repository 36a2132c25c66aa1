"""Experiment trackers: what follows runs and studies, and never stops, slows or silences them."""
