"""Scores to choices, choices to metrics with intervals, metrics to results.json; and what a prompt costs.

Nothing is imported here. Only `option_accuracy` and `cost` need torch, so that `promptcomp compare` starts fast.
"""
