"""Continuations of prompts by a causal language model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextStreamer,
)

from .checkpoints import CheckpointArguments, load_whole
from .precision import DTYPE_HELP, DTYPES, device_type, usable_device, weights_dtype

# tokens to generate where neither an option nor the checkpoint says how many
DEFAULT_NEW_TOKENS = 100


@dataclass
class PromptArguments:
    """The prompts, and how they are run."""

    _argument_group_name = "prompts"

    prompt: list[str] | None = field(default=None, metadata={"help": "One or several texts to continue."})
    prompt_file: str | None = field(
        default=None,
        metadata={"help": "File of prompts in their place: one a line, or, in .jsonl, objects with `prompt`."},
    )
    output_file: str | None = field(default=None, metadata={"help": "JSONL file for what is generated."})
    batch_size: int = field(default=8, metadata={"help": "Prompts that are generated at a time."})
    seed: int = field(default=0, metadata={"help": "Seed of what is sampled."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda:1; an accelerator, if there is one, if not given."}
    )
    dtype: str | None = field(default=None, metadata={"help": DTYPE_HELP, "choices": DTYPES})
    autocast: str | None = field(
        default=None,
        metadata={
            "help": "Compute in this precision where it is safe, and keep the weights in their own.",
            "choices": DTYPES[1:],
        },
    )
    assistant_model: str | None = field(
        default=None, metadata={"help": "Checkpoint of a smaller model with the same tokenizer, which drafts tokens."}
    )

    def __post_init__(self):
        if (self.prompt is None) == (self.prompt_file is None):
            raise ValueError(f"prompt={self.prompt!r} and prompt_file={self.prompt_file!r}: give one of the two")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")


def read_prompts(arguments: PromptArguments) -> list[str]:
    """
    The prompts, in their order.

    Raises:
        ValueError: if the file is missing, has no prompt, or a line of a .jsonl file has none.
    """
    if arguments.prompt is not None:
        return arguments.prompt
    path = Path(arguments.prompt_file)
    if not path.is_file():
        raise ValueError(f"prompt_file={arguments.prompt_file!r} does not exist")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"prompt_file={arguments.prompt_file!r} is empty: write one prompt a line")
    if path.suffix != ".jsonl":
        return lines
    prompts = []
    for number, line in enumerate(lines, start=1):
        try:
            prompts.append(json.loads(line)["prompt"])
            if not isinstance(prompts[-1], str):
                raise TypeError(f"{prompts[-1]!r} is not a text")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'prompt_file={arguments.prompt_file!r}: prompt {number} is {line[:80]!r}, not {{"prompt": ...}}'
            ) from error
    return prompts


def load(
    checkpoint: CheckpointArguments, arguments: PromptArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    The model, ready to generate, and its tokenizer.

    Raises:
        ValueError: if the checkpoint is not a causal language model.
    """
    config = AutoConfig.from_pretrained(checkpoint.checkpoint, **checkpoint.hub_options)
    saved = (config.architectures or ["model without a head"])[0]
    if not saved.endswith(("ForCausalLM", "LMHeadModel")):
        raise ValueError(
            f"checkpoint={checkpoint.checkpoint!r} is a {saved}, which generates no text: name a causal language "
            "model, such as `synkhorn pretrain --objective clm` trains"
        )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.checkpoint, **checkpoint.hub_options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    device = usable_device(arguments.device or device_type())
    dtype = weights_dtype(arguments.dtype, config, device.type)
    model = load_whole(AutoModelForCausalLM, checkpoint.checkpoint, dtype=dtype, **checkpoint.hub_options)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def encode(prompts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each prompt, without the end that an encoder's tokenizer sets: there the text is to go on."""
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    encoded = tokenizer(prompts, return_attention_mask=False).input_ids
    return [ids[:-1] if len(ids) > 1 and ids[-1] in ends else ids for ids in encoded]


def check_lengths(prompts: list[str], encoded: list[list[int]], options: dict[str, Any], longest: int | None) -> None:
    """Raise a `ValueError` that names the first prompt that is empty, or is too long for what is to follow it."""
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), start=1):
        name = f"prompt {number} ({prompt[:40]!r}{'...' if len(prompt) > 40 else ''})"
        if not ids:
            raise ValueError(f"{name} has no tokens: write at least one word")
        if longest is None:
            continue
        if len(ids) >= longest:
            raise ValueError(
                f"{name} has {len(ids)} tokens, which leaves no room in the {longest} of the model's "
                "max_position_embeddings: shorten it"
            )
        if len(ids) + options.get("max_new_tokens", 0) > longest:
            raise ValueError(
                f"max_new_tokens={options['max_new_tokens']} does not fit behind {name} with its {len(ids)} tokens: "
                f"the model's max_position_embeddings={longest} leave room for {longest - len(ids)}"
            )


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[list[int]],
    options: dict[str, Any],
    streamer: TextStreamer | None = None,
) -> list[list[str]]:
    """The continuations of a batch of prompts, `num_return_sequences` of each."""
    inputs = tokenizer.pad({"input_ids": encoded}, padding_side="left", return_tensors="pt").to(model.device)
    sequences = model.generate(**inputs, **options, tokenizer=tokenizer, streamer=streamer)
    texts = tokenizer.batch_decode(sequences[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    count = len(texts) // len(encoded)
    return [texts[start : start + count] for start in range(0, len(texts), count)]


def default_length(model: PreTrainedModel, encoded: list[list[int]], longest: int | None) -> dict[str, int]:
    """How many tokens to generate where neither an option nor the checkpoint says it."""
    saved = model.generation_config
    if saved.max_new_tokens is not None or saved.max_length is not None:
        return {}
    room = DEFAULT_NEW_TOKENS if longest is None else longest - max(map(len, encoded))
    return {"max_new_tokens": min(DEFAULT_NEW_TOKENS, room)}


def rows(prompts: list[str], continuations: list[list[str]]) -> Iterator[dict[str, str]]:
    """One row for each continuation."""
    for prompt, texts in zip(prompts, continuations, strict=True):
        for text in texts:
            yield {"prompt": prompt, "continuation": text}
