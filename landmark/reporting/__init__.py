"""Reporting: plots, tables and the HTML page of a run or a study."""
