"""Tokens, FLOPs and memory of a model at the size of a task's images."""
