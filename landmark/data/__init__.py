"""Packed datasets: how they are made, checked, subset, streamed and decoded."""
