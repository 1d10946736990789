"""The tests catch every fault of `mutations.py`."""

import pytest
from mutations import MUTATIONS, ROOT, TESTS, Mutation, check_caught, check_unmutated, mutated


def test_every_fault_can_be_seeded():
    """So that the list is kept when the source changes, though the faults themselves take minutes."""
    for mutation in MUTATIONS:
        source = (ROOT / "modeling" / mutation.file).read_text(encoding="utf-8")
        assert mutated(source, mutation) != source
        file, test = mutation.test.split("::")
        assert f"def {test}(" in (TESTS / "modeling" / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("where", "change", "said"),
    [
        ("rows.no_such", "_ + 1 -> _", "there is no no_such"),
        ("rows.twice", "_ + 1 -> _", "applies 2 times"),
        ("rows.Here.once", "_ + 2 -> _", "applies 0 times"),
    ],
)
def test_a_change_that_does_not_apply_is_an_error(where, change, said):
    source = "def twice(x):\n    return x + 1, (x + 1)\nclass Here:\n    def once(self, x):\n        return f(x + 1)\n"
    with pytest.raises(ValueError, match=said):
        mutated(source, Mutation("", where, change, ""))
    assert "return f(x)" in mutated(source, Mutation("", "rows.Here.once", "_ + 1 -> _", ""))


@pytest.mark.slow
def test_all_tests_pass_without_a_fault(tmp_path):
    check_unmutated(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.fault)
def test_a_fault_is_caught(mutation: Mutation, tmp_path):
    check_caught(mutation, tmp_path)
