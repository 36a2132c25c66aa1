"""Schedulers: decide which trials stop early, pause, or continue with another trial's weights."""
