"""The seeded faults of softcuda/mutations.py can still be applied; `make mutations` applies them."""

from __future__ import annotations

import pytest
from softcuda.mutations import MUTATIONS, ROOT


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_its_text_is_there_once_and_its_tests_too(mutation):
    assert (ROOT / mutation.file).read_text().count(mutation.text) == 1
    assert mutation.replacement != mutation.text
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()


def test_names_are_told_apart():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 10
