"""Cleaning: what is wrong with the images of a dataset, and the selection without it."""
