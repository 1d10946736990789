"""What the tests of the training commands share: tiny texts and models, and commands in processes of their own."""

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import load_file

WORDS = ("good", "bad", "film", "plot", "very", "the", "a", "dull")
TINY_CONFIG = {
    "synthesizer": {"synthesizers": ["dense", "dot_product"]},
    "sinkhorn": {"block_size": 8},
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def write_texts(path: Path, count: int = 120) -> Path:
    """A text file of `count` documents, one a line."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 20))) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def pretraining(texts: Path, output_dir: Path, family: str = "sinkhorn", config: dict | None = None, **arguments):
    """The command line of a tiny pre-training run; values that are `True` are switches."""
    fields = SIZES | TINY_CONFIG[family] | (config or {})
    values = {
        "train_files": texts,
        "validation_size": 20,
        "family": family,
        "model_config": json.dumps(fields),
        "tokenizer_name": "bytes",
        "max_length": 32,
        "per_device_train_batch_size": 8,
        "output_dir": output_dir,
        "disable_tqdm": "true",
        # the same on every machine
        "bf16": "false",
    } | arguments
    return [part for name, value in values.items() for part in (f"--{name}", str(value)) if part != "True"]


def start(*command: str) -> subprocess.Popen:
    """`python -m COMMAND` in a process of its own, on one thread."""
    return start_python("-m", *command)


def start_python(*arguments: str) -> subprocess.Popen:
    """`python ARGUMENTS` in a process of its own, on one thread."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    """What a process printed, once it has ended well."""
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def completion(server: list[str], checkpoint: Path) -> dict:
    """What the server that `python SERVER CHECKPOINT` starts makes of `Once`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = start_python(*server, str(checkpoint), "--port", str(port))
    asked = {"model": str(checkpoint), "prompt": "Once", "max_tokens": 8}
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/completions", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    try:
        while True:
            assert process.poll() is None, process.communicate()[0]
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.URLError as error:
                # not yet listening
                if not isinstance(error.reason, ConnectionRefusedError):
                    raise
                time.sleep(0.2)
    finally:
        process.kill()
        process.communicate()


def same_weights(first: Path, second: Path) -> bool:
    """Whether two checkpoints hold the same weights, bit for bit."""
    left, right = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def losses(output_dir: Path) -> list[float]:
    """The logged training losses of a finished run."""
    history = json.loads((output_dir / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]
