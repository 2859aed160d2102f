"""Tasks: everything that depends on what a label is."""
