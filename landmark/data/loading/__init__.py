"""Loading: which rows a rank reads, and how they are read, decoded and batched."""
