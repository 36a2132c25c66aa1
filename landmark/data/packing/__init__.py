"""Packing: sources of images become shards, by a Ray Data job that can be killed and run again."""
