"""Runs: training, resuming and evaluating, each in its run directory. Nothing is imported here: views need no torch."""
