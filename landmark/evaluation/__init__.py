"""Evaluation: metrics over all images of a split, with trivial baselines."""

from landmark.evaluation.baselines import majority_top_k, random_top_k
from landmark.evaluation.tally import Tally, summarise

__all__ = ["Tally", "majority_top_k", "random_top_k", "summarise"]
