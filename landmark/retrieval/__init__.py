"""Retrieval: k-NN search over embeddings, and galleries that classify by nearest neighbors."""
