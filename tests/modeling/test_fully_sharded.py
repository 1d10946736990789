"""Fully sharded training: the units that accelerate makes of a model by its `_no_split_modules`, tried on CPUs."""

import re

from processes import SUPPORT, python

from synkhorn import FAMILIES


def test_fully_sharded_models_train_as_whole_ones():
    # by accelerate's own function: on CPUs a Trainer falls back to plain data parallelism
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    found = re.findall(r"units (\d+) farthest (\S+)", python(*launcher, SUPPORT / "fully_sharded.py"))
    assert len(found) == len(FAMILIES)
    for units, farthest in found:
        # two layers; final norm, word embeddings and head, which share one unit; the model
        assert int(units) == 6 and float(farthest) < 1e-5
