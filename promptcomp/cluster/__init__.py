"""SLURM: profiles, job scripts that people can read, submission, and the state of our jobs."""
