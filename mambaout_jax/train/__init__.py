"""Training: the loop, the step, the optimizer, and their metrics."""
