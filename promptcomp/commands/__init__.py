"""The commands of `promptcomp`, by subject; `cli.py` puts them together."""
