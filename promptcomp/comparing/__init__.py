"""Tables over finished runs (no torch is imported)."""
