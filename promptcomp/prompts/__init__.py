"""Compressed prompts as files: made of a run and a text, checked, and put in front of queries."""
