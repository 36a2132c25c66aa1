"""Evaluation: metrics over all images of a split, with trivial baselines."""

from landmark.evaluation.accumulator import ConfusionAccumulator, summarize
from landmark.evaluation.baselines import majority_top_k, random_top_k

__all__ = ["ConfusionAccumulator", "majority_top_k", "random_top_k", "summarize"]
