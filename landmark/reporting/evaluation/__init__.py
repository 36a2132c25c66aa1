"""The page of an evaluation: metrics, charts and examples."""
