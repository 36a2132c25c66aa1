"""Configs of the commands."""
