"""Metrics, throughput, profiles and telemetry of a run."""
