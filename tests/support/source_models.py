"""Tiny random models of the architectures that can be converted, and the comparison of outputs with them."""

import torch
import transformers
from variants import padding

from synkhorn.source_architectures import SOURCES

POSITIONS = 24
SIZES = {"vocab_size": 61, "initializer_range": 0.2, "num_labels": 3, "pad_token_id": 0}
BERT_SIZES = {
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 50,
    "max_position_embeddings": POSITIONS,
}
CONFIGS = {
    "Bert": SIZES | BERT_SIZES,
    # two rows of its table lie before the first position
    "Roberta": SIZES | BERT_SIZES | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "pad_token_id": 1},
    "DistilBert": SIZES | {"dim": 36, "n_layers": 3, "n_heads": 4, "hidden_dim": 50, "max_position_embeddings": 24},
    "GPT2": SIZES
    | {"n_embd": 36, "n_layer": 3, "n_head": 4, "n_positions": 24, "bos_token_id": None, "eos_token_id": None},
}
CLASSES = [source.prefix + suffix for source in SOURCES.values() for suffix in source.heads]
DOT_PRODUCT = {"to": "synthesizer", "synthesizers": ["dot_product"]}
OUTPUTS = ("last_hidden_state", "logits", "prediction_logits", "start_logits", "end_logits")


def source_model(class_name: str, **fields) -> transformers.PreTrainedModel:
    """A random model of an architecture, with random biases and norms too."""
    prefix = max((name for name in CONFIGS if class_name.startswith(name)), key=len)
    fields = CONFIGS[prefix] | fields
    if class_name.endswith("QuestionAnswering"):
        fields["num_labels"] = 2
    model = getattr(transformers, class_name)(getattr(transformers, f"{prefix}Config")(**fields)).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def inputs_of(model: transformers.PreTrainedModel, length: int = 19, side: str = "right") -> dict[str, torch.Tensor]:
    mask = padding(3, length, side)
    mask = torch.ones(3, length, dtype=torch.long) if mask is None else mask
    ids = torch.randint(2, 61, (3, length)).where(mask.bool(), model.config.pad_token_id)
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        inputs["token_type_ids"] = torch.randint(0, 2, ids.shape)
    if type(model).__name__.endswith("MultipleChoice"):
        inputs = {name: tensor[None] for name, tensor in inputs.items()}
    return inputs


def assert_same_outputs(converted, source, inputs):
    with torch.no_grad():
        ours, theirs = converted(**inputs), source(**inputs)
    compared = [name for name in OUTPUTS if name in theirs]
    assert compared
    for name in compared:
        actual, expected = ours["logits" if name == "prediction_logits" else name], theirs[name]
        if actual.shape[:2] == inputs["input_ids"].shape:
            actual, expected = (x[inputs["attention_mask"].bool()] for x in (actual, expected))
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
