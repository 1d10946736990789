"""The source files that a checkpoint of each family holds."""

import pytest

from synkhorn import FAMILIES

SHARED_CODE = {
    "backbone_attention.py",
    "backbone_layers.py",
    "cross_attention.py",
    "configuration_backbone.py",
    "head_layers.py",
    "input_checks.py",
    "modeling_backbone.py",
    "modeling_heads.py",
    "position_cache.py",
    "rows.py",
    "softmax_attention.py",
}
CODE = {family: SHARED_CODE | {f"configuration_{family}.py", f"modeling_{family}.py"} for family in FAMILIES}
CODE["synthesizer"] |= {"synthesizer_logits.py", "synthesizer_kernels.py"}
CODE["sinkhorn"] |= {f"sinkhorn_{name}.py" for name in ("attention", "cache", "choice", "decoding", "kernels", "sort")}
every_family = pytest.mark.parametrize("family", CODE)
