"""Evaluation: metrics over all images of a split, with trivial baselines."""

from landmark.evaluation.accumulator import Tally, summarise
from landmark.evaluation.baselines import majority_top_k, random_top_k

__all__ = ["Tally", "majority_top_k", "random_top_k", "summarise"]
