"""Transformers' own common tests, as `fetch.py` unpacks them, importable: what they lack is replaced here."""

import os
import re
import sys
from types import ModuleType
from unittest import mock

import pipeline_checks
import transformers
from fetch import FOLDER
from transformers.models.auto import modeling_auto

from synkhorn.configuration.configuration_backbone import AUTO_CLASSES

# what is slow needs an accelerator, but for one test of tokenizers
os.environ["RUN_SLOW"] = "1"
if not FOLDER.exists():
    raise FileNotFoundError(f"{FOLDER} is missing: run `python tests/common/fetch.py`")


class GenerationTesterMixin:
    """Lacking; `tests/modeling/test_generation.py` and `tests/modeling/test_cache.py` hold what it would test."""


class ExportTesterMixin:
    """Lacking; `tests/scripts/test_export.py` holds what it would test."""


# fields of every configuration, each with another value than its default
COMMON_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 3,
    "architectures": ["BertModel"],
    "id2label": {0: "dull", 1: "fine", 2: "great"},
    "label2id": {"dull": 0, "fine": 1, "great": 2},
    "problem_type": "regression",
}


def _replace(name: str, **members) -> None:
    module = ModuleType(f"tests.{name}")
    vars(module).update(members)
    sys.modules[module.__name__] = module


_replace("generation.test_utils", GenerationTesterMixin=GenerationTesterMixin)
_replace("exporters.test_export", ExportTesterMixin=ExportTesterMixin)
_replace("utils.test_configuration_utils", config_common_kwargs=COMMON_FIELDS)
for _name in re.findall(r"pipelines\.(test_pipelines_\w+)", (FOLDER / "tests/test_pipeline_mixin.py").read_text()):
    # tasks that are not for texts have no checks
    _replace(f"pipelines.{_name}", __getattr__=lambda name: getattr(pipeline_checks, name, None))

sys.path.insert(0, str(FOLDER))
# they would execute the library's sources a second time
with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
    from tests import (  # noqa: E402
        test_configuration_common,
        test_modeling_common,
        test_pipeline_mixin,
        test_tokenization_common,
        test_training_mixin,
    )
sys.path.remove(str(FOLDER))

ConfigTester = test_configuration_common.ConfigTester
ModelTesterMixin = test_modeling_common.ModelTesterMixin
PipelineTesterMixin = test_pipeline_mixin.PipelineTesterMixin
TokenizerTesterMixin = test_tokenization_common.TokenizerTesterMixin
TrainingTesterMixin = test_training_mixin.TrainingTesterMixin


def known_by_name(family: str):
    """Patches of the tables of names by which Transformers' tests find labels and tiny models; `Synthesizer`, say."""
    for suffix in AUTO_CLASSES.values():
        task = "" if suffix == "Model" else re.sub("(?<=[a-z])(?=[A-Z])", "_", suffix).upper() + "_"
        table = getattr(modeling_auto, f"MODEL_{task}MAPPING_NAMES")
        yield mock.patch.dict(table, {family.lower(): f"{family}{suffix}"})
        tiny = {"tokenizer_classes": ["PreTrainedTokenizerFast"], "processor_classes": []}
        yield mock.patch.dict(test_pipeline_mixin.tiny_model_summary, {f"{family}{suffix}": tiny})
