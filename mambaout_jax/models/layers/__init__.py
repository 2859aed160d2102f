"""Layers and blocks shared by all families."""
