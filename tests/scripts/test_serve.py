"""`synkhorn serve` hands its arguments to Transformers' server, with our classes where that looks for them."""

import sys
import types

import pytest

from synkhorn import SinkhornForCausalLM, SynthesizerForCausalLM
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
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'transformers\[serving\]'"):
        serve.main(["my-model"])
