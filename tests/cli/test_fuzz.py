"""Files and words that somebody or something has damaged: always a message, never a traceback or a hang."""

from __future__ import annotations

import os

from tests.fuzz import failures

CASES = int(os.environ.get("PROMPTCOMP_FUZZ_CASES", "200"))


def test_damaged_inputs_end_with_a_message() -> None:
    found = failures(CASES)
    assert not found, "\n\n".join(map(str, found))
