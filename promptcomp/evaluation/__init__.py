"""Scores to choices, choices to metrics with intervals, metrics to results.json; and what a prompt costs.

Nothing is imported here: `records`, `scoring`, `metrics`, `bootstrap`, `summary` and `results` need no torch, so that
`promptcomp compare` starts fast; `option_accuracy` and `cost` do.
"""
