"""Reporting: plots, tables and the page of a run or a study."""
