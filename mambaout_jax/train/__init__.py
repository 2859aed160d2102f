"""Training: the loop, the step, the optimizer and the metrics."""
