"""The training loop: epochs, steps, validation, the state of a run, and the session interface."""
