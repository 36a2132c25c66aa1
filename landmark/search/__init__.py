"""Search: spaces of trials, schedulers that end them early, the study that runs them by Ray Tune."""
