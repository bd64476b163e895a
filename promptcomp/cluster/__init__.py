"""SLURM: profiles, readable job scripts, submission, and the state of our jobs."""
