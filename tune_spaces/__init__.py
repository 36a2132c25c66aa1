"""Built-in search spaces: YAML files that `landmark tune --space NAME` loads by name."""
