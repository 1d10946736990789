"""Every test of Transformers' that does not run here has its reason in `not_run.py`, and only such a test."""

import re
from pathlib import Path

import pytest
from not_run import LEFT_OUT, reason_of

# marks of Transformers' own tests
MARKERS = ("accelerate_tests", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "is_pipeline_test")
MARKERS += ("is_training_test", "torch_compile_test")
HERE = Path(__file__).parent
# one test for every precision, side of padding, mask and kernel, one that trains for seconds, and one of an old name of
# `dtype`: `make common-tests`
# runs them all
REPEATED = re.compile(r"test_eager_matches_sdpa_inference_(?!08|17)|test_training_overfit|test_bc_torch_dtype")


def pytest_configure(config):
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)


def name_of(item) -> str:
    return f"{item.parent.name}.{item.name}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent != HERE:
            continue
        # what Transformers calls slow takes seconds here, or an accelerator
        item.own_markers = [mark for mark in item.own_markers if mark.name != "slow"]
        if REPEATED.match(item.name):
            item.add_marker(pytest.mark.slow)
        # each reason stands in `not_run.py`: nothing is skipped without one
        reason = reason_of(name_of(item), LEFT_OUT)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    reason = reason_of(name_of(item))
    if report.skipped and reason:
        report.longrepr = (*report.longrepr[:2], f"Skipped: {reason}")
    elif report.skipped:
        report.outcome, report.longrepr = "failed", f"skipped, but not_run.py gives no reason: {report.longrepr[2]}"
    elif report.when == "call" and report.passed and reason:
        report.outcome, report.longrepr = "failed", f"passes, but not_run.py has it not run: {reason}"
    return report
