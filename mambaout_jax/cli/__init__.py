"""The commands of `python -m mambaout_jax`, one file each.

A command is a module with `add_arguments(parser)` and `run(args)`, which returns the exit code; the first line of its
docstring is its help text. A command that takes `--config` sets TAKES_CONFIG to "required" or "optional"; its arguments
then include `config`, the file name, and `config_changes`.
"""
