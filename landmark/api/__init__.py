"""The Python API behind `import landmark`: models, datasets, and the commands as functions."""
