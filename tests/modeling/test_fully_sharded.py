"""Fully sharded training: the units that accelerate makes of a model by its `_no_split_modules`, tried on CPUs."""

import re
import subprocess
import sys

import pytest
from processes import SUPPORT

from synkhorn import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_fully_sharded_models_train_as_whole_ones(family):
    # by accelerate's own function: on CPUs a Trainer falls back to plain data parallelism
    script = SUPPORT / "fully_sharded.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = subprocess.run([*launcher, script, family], capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    units, farthest = re.search(r"units (\d+) farthest (\S+)", process.stdout).groups()
    # two layers; final norm, word embeddings and head, which share one unit; the model
    assert int(units) == 6 and float(farthest) < 1e-5
