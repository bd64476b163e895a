"""`promptcomp pretrain`: a base LM from a shipped recipe or a file, with progress."""

from __future__ import annotations
