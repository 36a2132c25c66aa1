"""The nodes of a Ray cluster: what they are, what is wrong with them, what they are at."""
