import gc
import os

# before anything imports the Hub's client
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from unittest.mock import patch  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from synkhorn.modeling import modeling_synthesizer, sinkhorn_kernels, synthesizer_kernels  # noqa: E402

# small as their models are, the tests run the fast forms
SHIPPED = modeling_synthesizer.WRITTEN_AT_MOST
modeling_synthesizer.WRITTEN_AT_MOST = 0

# a few examples, the same each time, or with `--hypothesis-profile=thorough` many new ones
hypothesis.settings.register_profile("default", max_examples=25, deadline=None, derandomize=True)
hypothesis.settings.register_profile("thorough", max_examples=2000, deadline=None, print_blob=True)
# for seeded faults: a failure is enough, and need not be the smallest
hypothesis.settings.register_profile(
    "unshrunk", hypothesis.settings.get_profile("default"), phases=[hypothesis.Phase.generate]
)
hypothesis.settings.load_profile("default")


def pytest_collection_finish():
    # each training collects garbage, and would look through all that was imported
    gc.freeze()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def forms_as_shipped(monkeypatch):
    """For what is compared, to the last digits, with a process that runs the shipped code."""
    monkeypatch.setattr(modeling_synthesizer, "WRITTEN_AT_MOST", SHIPPED)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small_tiles():
    """So that the few tokens of an example are several tiles, and several parts, of the fast forms."""
    with (
        patch.object(synthesizer_kernels, "ROWS", 3),
        patch.object(synthesizer_kernels, "LOGITS_AT_ONCE", 16),
        patch.object(sinkhorn_kernels, "LOGITS_AT_ONCE", 32),
    ):
        yield
