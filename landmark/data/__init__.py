"""Packed datasets: packing, verification, subsets, streaming and decoding."""
