"""Self-contained HTML pages and their figures, in one style."""
