"""
Warm start: turn a pre-trained BERT, RoBERTa, DistilBERT or GPT-2, with its head, into a Sinkhorn or Synthesizer model.

    synkhorn convert google-bert/bert-base-uncased --to sinkhorn --max_length 2048 --output_dir bert-2048
    synkhorn convert openai-community/gpt2 --to sinkhorn --max_length 4096 --output_dir gpt2-4096

The output folder is a complete checkpoint; its tokenizer cuts at the new length. It prints which weights were copied,
newly initialised or dropped. The new model starts with the source's behaviour: a Sinkhorn model gives the source's
outputs for a text of one block, a mixture has its weight on dot_product, and '{"synthesizers": ["dot_product"]}' is the
source. Then train it, by synkhorn finetune or pretrain.
"""

from dataclasses import dataclass, field

from synkhorn import FAMILIES
from synkhorn.conversion import POSITIONS, Conversion, convert

from .common.arguments import parse, read_fields
from .common.checkpoints import CheckpointArguments, check_new_folder, whole_folder


@dataclass
class ConvertArguments:
    """The new model."""

    _argument_group_name = "conversion"

    to: str = field(metadata={"help": "Family of the new model.", "choices": FAMILIES})
    output_dir: str = field(metadata={"help": "New folder for the converted checkpoint."})
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of the longest sequence. The source's own if not given."}
    )
    positions: str = field(
        default="tile",
        metadata={
            "help": "Learned positions past the source's: `tile` repeats them, `interpolate` stretches them.",
            "choices": list(POSITIONS),
        },
    )
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "Fields of the family's configuration: a JSON object such as '{\"block_size\": 128}', or a JSON or "
            "YAML file of one."
        },
    )


def main(arguments: list[str] | None = None) -> Conversion:
    """Convert, write, and return the conversion."""
    checkpoint, target = parse((CheckpointArguments, ConvertArguments), arguments, __doc__, first="checkpoint")
    check_new_folder("output_dir", target.output_dir)
    own_fields = {} if target.model_config is None else read_fields("model_config", target.model_config)
    conversion = convert(
        checkpoint.checkpoint,
        target.to,
        target.max_length,
        target.positions,
        **checkpoint.hub_options,
        **own_fields,
    )
    with whole_folder(target.output_dir) as folder:
        conversion.save_pretrained(folder)
    print(conversion.table())
    print(f"\n{target.output_dir}: sequences of up to {conversion.model.config.max_position_embeddings:,} tokens")
    return conversion


if __name__ == "__main__":
    main()
