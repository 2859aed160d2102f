"""Evaluation and prediction with the weights of a run."""
