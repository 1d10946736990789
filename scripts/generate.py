"""
Continue prompts with a causal language model, with all options of `generate()`.

    synkhorn generate my-model --prompt "Once upon a time" --max_new_tokens 100 --do_sample --temperature 0.8
    synkhorn generate my-model --prompt_file prompts.txt --output_file continuations.jsonl --num_beams 4

One prompt is written to the terminal as it grows. Several are generated in batches, padded to the left, and written
batch by batch; with --output_file all of them go, at the end, to a file with one JSON object a line: `prompt` and
`continuation`. What no option sets is as the checkpoint's generation_config.json has it.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, TextStreamer, set_seed

from synkhorn.hub_export import write_whole

from .common.arguments import parse
from .common.checkpoints import CheckpointArguments, load_whole
from .common.generation import (
    PromptArguments,
    check_lengths,
    default_length,
    encode,
    generate,
    load,
    read_prompts,
    rows,
)
from .common.generation_options import GenerationArguments, given_options


def main(arguments: list[str] | None = None) -> list[dict[str, str]]:
    """Generate, and return what was written: a row for each continuation."""
    checkpoint, prompting, generating = parse(
        (CheckpointArguments, PromptArguments, GenerationArguments), arguments, __doc__, first="checkpoint"
    )
    options = given_options(generating)
    prompts = read_prompts(prompting)
    model, tokenizer = load(checkpoint, prompting)
    encoded = encode(prompts, tokenizer)
    longest = getattr(model.config, "max_position_embeddings", None)
    check_lengths(prompts, encoded, options, longest)
    if not {"max_new_tokens", "max_length"} & set(options):
        options |= default_length(model, encoded, longest)
    if prompting.assistant_model is not None:
        options["assistant_model"] = load_whole(
            AutoModelForCausalLM,
            prompting.assistant_model,
            dtype=model.dtype,
            trust_remote_code=checkpoint.trust_remote_code,
        ).to(model.device)  # type: ignore[arg-type]
    set_seed(prompting.seed)
    precision = prompting.autocast and torch.autocast(model.device.type, getattr(torch, prompting.autocast))
    show = prompting.output_file is None
    one = len(prompts) == options.get("num_return_sequences", 1) == options.get("num_beams", 1) == 1
    streamer = TextStreamer(tokenizer, skip_special_tokens=True) if show and one else None
    written = []
    with precision or nullcontext():
        for start in range(0, len(prompts), prompting.batch_size):
            batch = slice(start, start + prompting.batch_size)
            batch_rows = list(rows(prompts[batch], generate(model, tokenizer, encoded[batch], options, streamer)))
            written += batch_rows
            if show and streamer is None:
                print("\n\n".join(row["prompt"] + row["continuation"] for row in batch_rows), flush=True)
    if prompting.output_file is not None:
        path = Path(prompting.output_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in written))
        print(f"{len(written)} continuations of {len(prompts)} prompts: {path}")
    return written


if __name__ == "__main__":
    main()
