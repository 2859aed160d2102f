"""Train a model with and without an SSM, and compare."""
