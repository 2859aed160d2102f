"""A run on disk: config, workdir, checkpoints, logs, and how it ends."""
