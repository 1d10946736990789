"""Programs of torch.export and ONNX files of encoders, and how far their outputs are from the model."""

import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
import transformers
from torch import nn
from torch.export import Dim, ExportedProgram
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from synkhorn.configuration.configuration_backbone import AUTO_CLASSES

from .checkpoints import CheckpointArguments, load_whole

Tensors = dict[str, torch.Tensor]
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
CAUSAL = "AutoModelForCausalLM"
MULTIPLE_CHOICE = "AutoModelForMultipleChoice"
# checked sizes, with the traced one between them: none is special to a trace, such as 1
CHECKED_BATCHES, TRACED_BATCH = (1, 4), 3
CHOICES = 2


class PlainModel(nn.Module):
    """A model whose outputs are a dictionary of tensors, so that its program loads without Transformers."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids=None) -> Tensors:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return dict(self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **types))


def load_model(checkpoint: CheckpointArguments, auto_class: str | None) -> tuple[PreTrainedModel, str]:
    """
    The model to export, in float32, and its Auto class.

    Raises:
        ValueError: if the checkpoint is a causal language model, or lacks weights of `auto_class`.
    """
    config = AutoConfig.from_pretrained(checkpoint.checkpoint, **checkpoint.hub_options)
    auto_classes = {name.split(".")[-1]: auto for auto, name in (getattr(config, "auto_map", None) or {}).items()}
    saved = (config.architectures or [None])[0]
    auto_class = auto_class or auto_classes.get(saved)
    if auto_class not in AUTO_CLASSES or auto_class == CAUSAL:
        raise ValueError(
            f"checkpoint={checkpoint.checkpoint!r} is a {saved}, and an encoder is exported, not a model that "
            "generates step by step: name another checkpoint, or take its base model by --auto_class AutoModel"
        )
    model = load_whole(
        getattr(transformers, auto_class), checkpoint.checkpoint, dtype=torch.float32, **checkpoint.hub_options
    )
    return model.eval(), auto_class


def block_of(config: PreTrainedConfig) -> int:
    """The size that lengths are compared with: a block's, where the model has blocks."""
    return getattr(config, "block_size", config.max_position_embeddings)


def checked_lengths(config: PreTrainedConfig) -> list[int]:
    """Lengths from 1 to the longest, with whole blocks and parts of them."""
    longest, block = config.max_position_embeddings, block_of(config)
    lengths = {1, 2, longest // 2, longest - 1, longest, block - 1, block, block + 1, 2 * block + 1}
    return sorted(length for length in lengths if 1 <= length <= longest)


def traced_length(config: PreTrainedConfig) -> int:
    """A length that is not special: more than 1, less than the longest, no number of whole blocks."""
    longest, block = config.max_position_embeddings, block_of(config)
    return next((length for length in range(longest - 1, 1, -1) if length % block or block == 1), longest)


def example_inputs(config: PreTrainedConfig, auto_class: str, batch: int, length: int) -> Tensors:
    """Random tokens: the first row is full, the others are padded to the left and to the right in turn."""
    generator = torch.Generator().manual_seed(length)
    lead = (batch, CHOICES) if auto_class == MULTIPLE_CHOICE else (batch,)
    ids = torch.randint(config.vocab_size, (*lead, length), generator=generator)
    mask = torch.ones_like(ids)
    for row, row_mask in enumerate(mask.view(-1, length)[1:], start=1):
        pads = min(length - 1, 1 + row * length // 6)
        row_mask[:pads] *= row % 2
        row_mask[length - pads :] *= 1 - row % 2
    inputs = {"input_ids": ids, "attention_mask": mask}
    if config.type_vocab_size:
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, ids.shape, generator=generator)
    return inputs


def trace(model: nn.Module, config: PreTrainedConfig, auto_class: str) -> tuple[ExportedProgram, Tensors, dict]:
    """The model as a program for any batch and length, the inputs it was traced with, and which sizes are free."""
    inputs = example_inputs(config, auto_class, TRACED_BATCH, traced_length(config))
    sizes = [Dim("batch", min=1), Dim("length", min=1, max=config.max_position_embeddings)]
    if auto_class == MULTIPLE_CHOICE:
        sizes.insert(1, Dim("choices", min=1))
    shapes = dict.fromkeys(inputs, dict(enumerate(sizes)))
    # as torch.onnx.export does by itself: sizes of 1 are not a special case
    oblivious = torch.fx.experimental._config.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious:
        program = torch.export.export(
            model, (), inputs, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
    for node in list(program.graph.nodes):
        # where PyTorch took a size for more than 1 it says so, but the same operations serve a size of 1
        if node.target is torch.ops.aten._assert_scalar.default and "for expression Ne(" in node.args[1]:
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program, inputs, shapes


def write_onnx(path: Path, program: ExportedProgram, inputs: Tensors, shapes: dict, outputs: list[str]) -> None:
    """Write a program as ONNX."""
    with warnings.catch_warnings():
        # it names an axis once, and says so of every further input
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        exported = torch.onnx.export(
            program, kwargs=inputs, output_names=outputs, dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    for weight in exported.model.graph.initializers.values():
        # a tensor has a shape of its own; a second one is wrong once onnxruntime's quantizer has transposed the tensor
        weight.shape = weight.type = None
    exported.save(path)


def read_onnx(path: Path) -> Callable[[Tensors], Tensors]:
    """The outputs of an ONNX file in onnxruntime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Tensors:
        outputs = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, outputs, strict=True)}

    return run


def read_program(path: Path) -> Callable[[Tensors], Tensors]:
    """The outputs of a saved program."""
    module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


READERS = {"onnx": read_onnx, "torch": read_program}


@torch.no_grad()
def largest_difference(
    name: str,
    run: Callable[[Tensors], Tensors],
    model: nn.Module,
    config: PreTrainedConfig,
    auto_class: str,
    most: float,
) -> float:
    """
    The largest difference between what `run` and the model compute, over several batches and lengths.

    Raises:
        RuntimeError: if it is more than `most`, or a shape differs; it names the size.
    """
    largest = 0.0
    for length in checked_lengths(config):
        for batch in CHECKED_BATCHES:
            inputs = example_inputs(config, auto_class, batch, length)
            outputs = run(inputs)
            for output, expected in model(**inputs).items():
                where = f"{name}: {output} of a batch of {batch} with length {length}"
                if outputs[output].shape != expected.shape:
                    raise RuntimeError(f"{where} is {list(outputs[output].shape)}, not {list(expected.shape)}")
                difference = ((outputs[output] - expected).abs().max() / expected.abs().max().clamp(min=1)).item()
                if not difference <= most:
                    raise RuntimeError(f"{where} is {difference:.1e} from the model's, more than tolerance={most}")
                largest = max(largest, difference)
    return largest
