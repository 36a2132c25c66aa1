"""The node's cache of row groups: as JPEG or as YUV planes, in a bounded folder that all processes share."""
