"""A model of any configuration has the same weights, bit for bit, once it is saved and loaded, as remote code too."""

import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from strategies import VOCABULARY, configs, seeds
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from variants import randomize

from synkhorn import FAMILIES
from synkhorn.configuration.configuration_backbone import BackboneConfig
from synkhorn.hub_export import export_code

MODELS = {name: family.model_class("Model") for name, family in FAMILIES.items()}


@pytest.fixture(scope="module")
def remote_models(tmp_path_factory):
    """The base models as remote code has them, from the source files that a checkpoint brings along."""
    layers = transformers.cache_utils
    with patch.dict(layers.DYNAMIC_LAYER_TYPE_MAPPING), patch.dict(layers.STATIC_LAYER_TYPE_MAPPING):
        folders = {family: tmp_path_factory.mktemp(family) for family in MODELS}
        for family, folder in folders.items():
            export_code(family, folder)
        yield {
            family: get_class_from_dynamic_module(f"modeling_{family}.{model.__name__}", str(folders[family]))
            for family, model in MODELS.items()
        }


@given(configs(), seeds, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_saving_and_loading_change_nothing(remote_models, config, seed, dtype):
    model = randomize(MODELS[config.model_type](config).to(dtype), seed).eval()
    shape = (2, config.max_position_embeddings)
    ids = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
    expected, rounding = model(ids).last_hidden_state, 20 * torch.finfo(dtype).eps
    # the code is the same for all
    with tempfile.TemporaryDirectory() as folder, patch.object(BackboneConfig, "export_code", None):
        first, second = Path(folder, "first"), Path(folder, "second")
        model.save_pretrained(first)
        loaded = transformers.AutoModel.from_pretrained(first, dtype=dtype)
        remote = remote_models[config.model_type].from_pretrained(first, dtype=dtype)
        for same in (loaded, remote):
            weights, found = model.state_dict(), same.state_dict()
            assert weights.keys() == found.keys() and all(torch.equal(weights[name], found[name]) for name in weights)
            # a product of weights that lie elsewhere in memory may be rounded otherwise
            torch.testing.assert_close(same(ids).last_hidden_state, expected, atol=rounding, rtol=rounding)
            same.save_pretrained(second)
            for name in ("config.json", "model.safetensors"):
                assert (second / name).read_bytes() == (first / name).read_bytes()
