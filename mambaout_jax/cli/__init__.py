"""The commands of `python -m mambaout_jax`, one file each.

A command is a module with `add_arguments(parser)` and `run(args)`, which returns the exit code; the first line of its
docstring is its help. A command that reads an experiment sets TAKES_CONFIG to "required" or "optional", and gets
`config`, the file name, and `config_changes` in its arguments.
"""
