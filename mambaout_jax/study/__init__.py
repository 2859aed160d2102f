"""Training a model with and without an SSM, and comparing the results."""
