"""Tasks: what a label is, and everything that depends on it."""
