"""The page of a study: tables, charts and effects of hyperparameters."""
