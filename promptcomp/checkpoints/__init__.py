"""Checkpoints: what training has changed and the optimiser's state by name, in one file or in a folder of parts."""
