"""Runs on disk: config, workdir, checkpoints, logs, errors and signals."""
