"""Export of a run's weights to other programs, and import into workdirs."""
