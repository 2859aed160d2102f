"""HTML pages of one file each, and the figures on them, in one style."""
