"""`synkhorn serve` hands its arguments to Transformers' server, with our classes where that looks for them."""

import json
import socket
import sys
import time
import types
import urllib.error
import urllib.request

import pytest
from tiny_runs import start
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
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"http://localhost:{free.getsockname()[1]}"
    process = start("synkhorn.scripts.serve", str(tmp_path), "--port", address.rpartition(":")[2])
    try:
        asked = {"model": str(tmp_path), "prompt": "Once", "max_tokens": 8}
        request = urllib.request.Request(
            f"{address}/v1/completions", json.dumps(asked).encode(), {"content-type": "application/json"}
        )
        for _ in range(240):
            assert process.poll() is None, process.communicate()[0]
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    completion = json.load(answer)
                break
            except urllib.error.URLError:
                time.sleep(0.5)
        assert completion["usage"]["completion_tokens"] == 8
    finally:
        process.kill()
        process.communicate()
