"""Scores to choices, choices to metrics with intervals, metrics to results.json; and what a prompt costs."""
