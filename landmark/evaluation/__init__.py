"""Evaluation: metrics that count every row once, beside the baselines that know nothing of the image."""

from landmark.evaluation.baselines import majority_top_k, random_top_k
from landmark.evaluation.tally import Tally, summarise

__all__ = ["Tally", "majority_top_k", "random_top_k", "summarise"]
