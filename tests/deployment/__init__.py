"""Tests of the manifests, the cluster files and the image: built, validated, and checked by named policies."""
