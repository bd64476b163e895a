"""Checkpoints: what training has changed and the optimiser's state by name, in one file or sharded in a folder."""
