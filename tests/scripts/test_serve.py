"""`synkhorn serve` hands its arguments to Transformers' server, with our classes where that looks for them."""

import sys
import types

import pytest
from tiny_runs import completion
from transformers.utils.import_utils import is_serve_available
from variants import tiny_sinkhorn_config

from synkhorn import SinkhornForCausalLM, SynthesizerForCausalLM, byte_tokenizer
from synkhorn.cli import main
from synkhorn.scripts import serve

NAMES = ("SinkhornForCausalLM", "SynthesizerForCausalLM")


def test_the_server_gets_the_arguments_and_finds_the_classes(monkeypatch):
    seen = []

    def serve_all():
        classes = [
            getattr(sys.modules["transformers"], name) for name in ("SinkhornForCausalLM", "SynthesizerForCausalLM")
        ]
        seen.append((sys.argv, classes))

    server = types.ModuleType("transformers.cli.transformers")
    server.main = serve_all
    monkeypatch.setitem(sys.modules, "transformers.cli.transformers", server)
    monkeypatch.setattr(serve, "is_serve_available", lambda: True)
    monkeypatch.setattr(sys, "argv", ["synkhorn"])
    for name in NAMES:
        monkeypatch.setattr(sys.modules["transformers"], name, None, raising=False)
    main(["serve", "my-model", "--port", "8000"])
    assert seen == [
        (["transformers", "serve", "my-model", "--port", "8000"], [SinkhornForCausalLM, SynthesizerForCausalLM])
    ]


def test_without_the_servers_packages_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(serve, "is_serve_available", lambda: False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'synkhorn\[serve\]'"):
        serve.main(["my-model"])


@pytest.mark.skipif(not is_serve_available(), reason="needs pip install 'synkhorn[serve]'")
def test_a_checkpoint_is_served(tmp_path):
    config = tiny_sinkhorn_config(vocab_size=260, max_position_embeddings=64, eos_token_id=None)
    SinkhornForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer(64, is_causal=True).save_pretrained(tmp_path)
    answer = completion(["-m", "synkhorn.scripts.serve"], tmp_path)
    assert answer["usage"] == {"prompt_tokens": len("Once") + 1, "completion_tokens": 8, "total_tokens": 13}
