"""Cleaning: detect faulty images, duplicates, distractors and label errors, and write a filtered view of a dataset."""
