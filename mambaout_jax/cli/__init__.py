"""The commands of `python -m mambaout_jax`, one file each.

A command is a module whose docstring's first line is its help, with `add_arguments(parser)` and `run(args)`, which
gives the exit code. One that reads an experiment says TAKES_CONFIG = "required" or "optional" and finds `config`, the
file's name, and `config_changes` in its arguments.
"""
