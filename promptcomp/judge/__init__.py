"""Pairwise win rates of generated texts, judged by a language model."""
