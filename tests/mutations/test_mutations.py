"""The tests catch every fault of `mutations.py`."""

import shutil

import pytest
from mutations import MUTATIONS, ROOT, TESTS, Mutation, caught, check_unmutated, mutate


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_a_fault_can_be_seeded(mutation: Mutation, tmp_path):
    """So that the list is kept when the source changes, though the faults themselves take minutes."""
    shutil.copytree(ROOT / "modeling", tmp_path / "modeling")
    mutate(tmp_path, mutation)
    file, test = mutation.test.split("::")
    assert f"def {test}(" in (TESTS / file).read_text()


@pytest.mark.slow
def test_all_tests_pass_without_a_fault(tmp_path):
    check_unmutated(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_a_fault_is_caught(mutation: Mutation, tmp_path):
    caught(mutation, tmp_path)
