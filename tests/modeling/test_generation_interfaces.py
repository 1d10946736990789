"""What generates text around `generate()`: `pipeline("text-generation")` without the package, and streamers."""

import logging
from pathlib import Path
from threading import Thread

import pytest
from checkpoints import write_causal
from processes import python
from transformers import TextIteratorStreamer, pipeline

PROMPTS = ["One", "Another", "b"]
# run in a new process, where an import of the package fails
USE_PIPELINE = """
import sys
sys.modules["synkhorn"] = None
from transformers import pipeline
generate = pipeline("text-generation", sys.argv[1], trust_remote_code=True)
assert type(generate.model).__module__.startswith("transformers_modules.")
for batch_size in (1, 3):
    rows = generate(sys.argv[2:], batch_size=batch_size, max_new_tokens=8, do_sample=False, return_full_text=False)
    print([row[0]["generated_text"] for row in rows])
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return write_causal(tmp_path / "model")


def alone(generate, prompt: str) -> str:
    """What follows a prompt that is in no batch."""
    inputs = generate.tokenizer(prompt, return_tensors="pt")
    sequences = generate.model.generate(**inputs, max_new_tokens=8)
    return generate.tokenizer.decode(sequences[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_pipelines_ask_for_no_more_than_the_model_takes(checkpoint, caplog):
    generate = pipeline("text-generation", str(checkpoint), return_full_text=False)
    generate.model.generation_config.eos_token_id = None
    # another test of the process may have been told already
    logging.Logger.warning_once.cache_clear()
    tokens = generate("a prompt", return_tensors=True)[0]["generated_token_ids"]
    length = len(generate.tokenizer("a prompt").input_ids)
    assert len(tokens) == 32
    assert "max_new_tokens=256" in caplog.text and f"at most {32 - length} after" in caplog.text
    # what the caller did ask for is an error, before and after
    for asked in ({"max_new_tokens": 30}, {"max_new_tokens": 257}, {"max_length": 33}):
        with pytest.raises(ValueError, match=rf"generate at most {32 - length}, shorten the prompt"):
            generate("a prompt", **asked)
    with pytest.raises(ValueError, match="the prompt has 2001 tokens, which leaves no room .*=32: shorten the prompt"):
        generate("a" * 2000)


def test_pipelines_truncate_what_is_longer_than_the_model(checkpoint):
    fill = pipeline("feature-extraction", str(checkpoint), truncation=True)
    assert len(fill("a" * 2000)[0]) == fill.model.config.max_position_embeddings == 32


def test_pipeline_in_batches_in_a_process_without_the_package(checkpoint, tmp_path):
    generate = pipeline("text-generation", str(checkpoint))
    printed = python("-c", USE_PIPELINE, checkpoint, *PROMPTS, HF_HOME=str(tmp_path / "home"))
    expected = str([alone(generate, prompt) for prompt in PROMPTS])
    assert printed.splitlines() == [expected, expected]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_streamed_text_is_that_of_the_batch(checkpoint, prompt):
    generate = pipeline("text-generation", str(checkpoint))
    inputs = generate.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    sequences = generate.model.generate(**inputs, max_new_tokens=8)[:, inputs.input_ids.shape[1] :]
    batch = dict(zip(PROMPTS, generate.tokenizer.batch_decode(sequences, skip_special_tokens=True), strict=True))
    streamer = TextIteratorStreamer(generate.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    options = generate.tokenizer(prompt, return_tensors="pt") | {"max_new_tokens": 8, "streamer": streamer}
    thread = Thread(target=generate.model.generate, kwargs=options)
    thread.start()
    streamed = "".join(streamer)
    thread.join()
    assert streamed == batch[prompt] != ""
