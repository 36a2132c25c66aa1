"""Inference: a trained model as a Python object."""
