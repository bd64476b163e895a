"""Runs: training, resuming and evaluating, each in its run directory."""

from promptcomp.run.fitting import Outcome, evaluate, fit, resume_fit

__all__ = ["Outcome", "evaluate", "fit", "resume_fit"]
