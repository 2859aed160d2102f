"""Weights of a run for other programs, and theirs for a run."""
