"""Search spaces that come with landmark: YAML files that `landmark tune --space NAME` finds by name."""
