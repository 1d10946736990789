"""
Export an encoder to ONNX or torch.export, and check that its outputs are those of the model.

    synkhorn export my-classifier --output_dir my-classifier-onnx
    synkhorn export my-classifier --output_dir exported --formats onnx torch

Batch and length stay free: one graph takes any batch, and any length from 1 to the model's longest, padded to the left
or to the right. The output folder gets model.onnx, which onnxruntime runs (inputs `input_ids`, `attention_mask` and,
where the model has token types, `token_type_ids`, all int64), model.pt2, which torch.export.load reads without
Transformers, the configuration with its labels, and the tokenizer. The check runs on what was written, before it is in
place: lengths and batches other than those that were traced, padded on both sides.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoTokenizer
from transformers.utils import CONFIG_NAME

from synkhorn.configuration.configuration_backbone import AUTO_CLASSES

from .common.arguments import parse
from .common.checkpoints import CheckpointArguments, check_new_folder, whole_folder
from .common.exporting import (
    CAUSAL,
    CHECKED_BATCHES,
    FILES,
    READERS,
    PlainModel,
    checked_lengths,
    largest_difference,
    load_model,
    trace,
    write_onnx,
)


@dataclass
class ExportArguments:
    """The exported files."""

    _argument_group_name = "export"

    output_dir: str = field(metadata={"help": "New folder for the exported model."})
    formats: list[str] = field(
        default_factory=lambda: ["onnx"],
        metadata={"help": "`onnx`, for onnxruntime and others; `torch`, for torch.export.load; or both."},
    )
    auto_class: str | None = field(
        default=None,
        metadata={
            "help": "Which model of the checkpoint: its own if not given; AutoModel for the embeddings alone.",
            "choices": [name for name in AUTO_CLASSES if name != CAUSAL],
        },
    )
    tolerance: float = field(
        default=1e-4,
        metadata={"help": "How far an output may be from the model's own, relative to the largest of them or to 1."},
    )

    def __post_init__(self):
        if not self.formats or not set(self.formats) <= set(FILES):
            raise ValueError(f"formats={self.formats} must be one or more of {', '.join(FILES)}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance} must be positive")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Export, and return the largest difference found for each format."""
    checkpoint, export = parse((CheckpointArguments, ExportArguments), arguments, __doc__, first="checkpoint")
    check_new_folder("output_dir", export.output_dir)
    trained, auto_class = load_model(checkpoint, export.auto_class)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.checkpoint, **checkpoint.hub_options)
    config, model = trained.config, PlainModel(trained)
    program, inputs, shapes = trace(model, config, auto_class)
    differences = {}
    with whole_folder(export.output_dir) as folder:
        for name in export.formats:
            path = folder / FILES[name]
            if name == "onnx":
                with torch.no_grad():
                    outputs = list(model(**inputs))
                write_onnx(path, program, inputs, shapes, outputs)
            else:
                torch.export.save(program, path)
            differences[name] = largest_difference(
                FILES[name], READERS[name](path), model, config, auto_class, export.tolerance
            )
        config.to_json_file(folder / CONFIG_NAME)
        tokenizer.save_pretrained(folder)
    lengths = ", ".join(map(str, checked_lengths(config)))
    print(f"{type(trained).__name__}, checked with batches of {CHECKED_BATCHES} and lengths {lengths}:")
    for name, difference in differences.items():
        print(f"  {Path(export.output_dir) / FILES[name]}: at most {difference:.1e} from the model's outputs")
    return differences


if __name__ == "__main__":
    main()
