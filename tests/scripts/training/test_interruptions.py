"""`synkhorn pretrain` is killed twenty times, in training and in saving, and ends as if it had not been."""

import json
import random
import time
from pathlib import Path

import pytest
from tiny_runs import finished, losses, pretraining, same_weights, start, write_texts

from synkhorn.scripts.training.runs import is_complete

ARGUMENTS = {"max_steps": 150, "save_steps": 3, "eval_steps": 50, "logging_steps": 1}


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def wait_for(process, condition) -> None:
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.001)


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path):
    texts, whole, killed = write_texts(tmp_path / "texts.txt"), tmp_path / "whole", tmp_path / "killed"
    finished(start("synkhorn.scripts.pretrain", *pretraining(texts, whole, **ARGUMENTS)))
    command = ("synkhorn.scripts.pretrain", *pretraining(texts, killed, **ARGUMENTS))
    draw, last, in_saving = random.Random(0), 0, 0
    for kill in range(20):
        process = start(*command)
        if kill == 19:
            # while the finished model is written
            wait_for(process, (killed / "model.safetensors").exists)
        else:
            # a checkpoint further on is begun, and every second time it is let finish
            last += ARGUMENTS["save_steps"] * draw.randint(1, 3)
            checkpoint = killed / f"checkpoint-{last}"
            wait_for(process, checkpoint.exists if kill % 2 else lambda: is_complete(checkpoint))  # noqa: B023
            time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -9 and "results" not in json.loads((killed / "run.json").read_text())
        checkpoints = sorted(killed.glob("checkpoint-*"), key=step_of)
        in_saving += not is_complete(checkpoints[-1])
        # where the next run goes on
        last = max(step_of(path) for path in checkpoints if is_complete(path))
    assert in_saving >= 3
    finished(start(*command))
    assert same_weights(killed, whole)
    assert losses(killed) == losses(whole) and len(losses(whole)) == ARGUMENTS["max_steps"]
    results = [json.loads((folder / "run.json").read_text())["results"] for folder in (killed, whole)]
    assert results[0]["eval_perplexity"] == results[1]["eval_perplexity"]
    assert all(is_complete(checkpoint) for checkpoint in killed.glob("checkpoint-*"))
    assert {path.name for path in killed.iterdir()} - {path.name for path in whole.iterdir()} == set()
