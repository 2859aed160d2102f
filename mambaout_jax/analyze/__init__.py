"""Tokens, FLOPs and memory of a model at the image size of a dataset."""
