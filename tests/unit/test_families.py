"""Every family of language models is right or refused by name, and docs/models.md says which is which."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
import transformers

from tests.family_matrix import PAGE, cases, outcome, row

PAGE_TEXT = PAGE.read_text(encoding="utf-8")
IS_OF_PAGE = f"with transformers {transformers.__version__}." in PAGE_TEXT
ROWS = [line for line in PAGE_TEXT.splitlines() if line.startswith("| ")][1:]


@pytest.fixture(autouse=True)
def _ignores_what_models_say() -> Iterator[None]:
    """Some families warn of themselves."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("case", cases())
def test_a_family_gives_the_numbers_of_plain_transformers_or_is_refused(case: str) -> None:
    found = outcome(case)
    if IS_OF_PAGE:
        assert row(case, found) in ROWS, "write the page again: python -m tests.family_matrix"


def test_the_page_lists_the_families_that_are_tested() -> None:
    if not IS_OF_PAGE:
        pytest.skip("the page was written with another release of transformers")
    assert [line.split("|")[1].strip() for line in ROWS] == cases()
    assert sum("| works" in line for line in ROWS) >= 60
