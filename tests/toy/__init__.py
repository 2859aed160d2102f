"""A family and a task of another package, as hard as detection: a model of two stages that finds bright spots.

The plugin is `tests.toy.plugin`, so that data workers import `tests.toy.records` without JAX.
"""
