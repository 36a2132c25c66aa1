"""Inspection of a Ray cluster: the resources, problems and status of its nodes."""
