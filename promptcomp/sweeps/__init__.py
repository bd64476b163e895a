"""Sweeps: many runs of one experiment over ranges of its keys, planned by Optuna, each run a child `promptcomp fit`.

Terms: a **point** is one choice of the swept keys; a **trial** is a point with a seed, and so one run directory.
"""
