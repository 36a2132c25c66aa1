"""Packing of source images into shards, by a Ray Data job that can be killed and resumed."""
