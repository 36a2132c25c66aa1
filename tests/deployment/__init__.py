"""Manifests, cluster files and the image: built, validated, and held against named policies."""
