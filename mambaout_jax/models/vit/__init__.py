"""The Vision Transformer and DeiT."""
