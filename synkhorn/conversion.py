"""Warm start: models of Transformers, such as BERT or GPT-2, as Synkhorn models with the same weights, and longer."""

import copy
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from .configuration.configuration_backbone import AUTO_CLASSES, check_at_least, check_choice
from .families import FAMILIES
from .source_architectures import COMMON_FIELDS, SOURCES, SourceArchitecture, SourceHead
from .tokenization.tokenization_synkhorn import token_fields

# how positions past the source's are made, and what that is called
POSITIONS = {"tile": "tiled", "interpolate": "interpolated"}
POSITIONS_MODULE = "embeddings.position_embeddings"
# names of parameters that PEFT, pruning and parametrizations give, in place of those of a checkpoint
WRAPPED = re.compile(r"\.(base_layer|lora_\w+|parametrizations)\.|_orig$|\.weight_[gv]$")
# fields that follow from the source, but may be set
FREE_FIELDS = {"hidden_dropout", "classifier_dropout", "classifier_pooling", "initializer_range"}
# the weight of the dot product in a mixture, at the start
DOT_PRODUCT_WEIGHT = 0.99

# our name -> (source name, tensor)
Weights = dict[str, tuple[str, torch.Tensor]]


@dataclass
class Conversion:
    """
    A converted model, and where its weights are from.

    Attributes:
        model: the model, with the source's head, in evaluation.
        tokenizer: the source's, which cuts at the new length; `None` where the source was a model in memory.
        source: the source's class.
        copied: names of the model's tensors, and of the source's that they hold.
        new: names of the model's tensors that the source does not have, and how they are initialised.
        left_behind: names of the source's tensors that the model has no place for.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    source: str
    copied: dict[str, str]
    new: dict[str, str]
    left_behind: list[str]

    def table(self) -> str:
        """The tensors that were copied, newly initialised or dropped; those of all layers share a line."""
        sizes = {name: tensor.numel() for name, tensor in named_tensors(self.model)}
        left_behind = dict.fromkeys(self.left_behind, "")
        rows = [(f"{self.source} -> {type(self.model).__name__}", "")]
        for title, names in (("copied", self.copied), ("newly initialised", self.new), ("left behind", left_behind)):
            count = sum(sizes.get(name, 0) for name in names)
            rows.append((f"{title}: {f'{count:,} weights' if count else len(names) or 'nothing'}", ""))
            folded = {of_every_layer(name): of_every_layer(other) for name, other in names.items()}
            rows += [(f"  {name}", other) for name, other in folded.items()]
        width = max(len(name) for name, other in rows if other)
        return "\n".join(f"{name:<{width}}  {other}".rstrip() for name, other in rows)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write the model, the source files that it needs, and the tokenizer."""
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)


def convert(
    source: str | os.PathLike | PreTrainedModel,
    to: str,
    max_length: int | None = None,
    positions: str = "tile",
    revision: str = "main",
    trust_remote_code: bool = False,
    **own_fields: Any,
) -> Conversion:
    """
    A Sinkhorn or Synthesizer model with the weights of a BERT, RoBERTa, DistilBERT or GPT-2.

    `synthesizers=["dot_product"]` gives exactly what the source gives. Otherwise the start keeps what the source knew.
    A Sinkhorn model attends with the source's heads to its own and to the sorted block, and a text of one block gets
    the source's outputs, unless `combine="logits"`; its sort net is a new model's, which was measured to lose less than
    an even sort or none. Attentions that are added (`combine="sum"`, `mix_dot_product`) share what was one. A mixture
    with `dot_product` starts with weight 0.99 on it, and with logits of zero from its other members.

    Args:
        source: a checkpoint's folder or name on the Hub, or a model.
        to: a family, such as `sinkhorn`.
        max_length: tokens of the longest sequence; the source's own if not given.
        positions: how learned positions past the source's are made: `tile` repeats the source's, `interpolate`
            stretches them over the new length.
        revision: branch, tag or commit of a checkpoint on the Hub.
        trust_remote_code: run code that the checkpoint brings along, such as its tokenizer's.
        own_fields: fields of the family's configuration, such as `block_size`. Attention dropout is 0 unless given.

    Raises:
        ValueError: for a source that does not fit, an unknown choice, or a field that the source decides.

    Example:

    ```python
    >>> from synkhorn import convert
    >>> convert("FacebookAI/roberta-base", to="sinkhorn", max_length=4096).save_pretrained("roberta-4096")
    ```
    """
    check_choice("to", to, list(FAMILIES))
    check_choice("positions", positions, list(POSITIONS))
    read = read_source(source, to, own_fields, revision, trust_remote_code)
    model, tokenizer, weights = read.model, read.tokenizer, read.weights
    position_weight = f"{POSITIONS_MODULE}.weight"
    origin, table = weights[position_weight]
    length = len(table) if max_length is None else max_length
    check_at_least("max_length", length, 1)
    if length > len(table):
        origin = f"{origin}, {POSITIONS[positions]} from {len(table):,} to {length:,}"
    weights[position_weight] = origin, resized_table(table, length, positions)
    config = AutoConfig.for_model(to, **read.fields | {"max_position_embeddings": length} | own_fields)
    auto_class = next(auto for auto, suffix in AUTO_CLASSES.items() if suffix == read.head.suffix)
    target = getattr(transformers, auto_class).from_config(config, dtype=model.dtype).eval()
    copied, unplaced = copy_weights(weights, target)
    new = start_new_weights(target, copied)
    if target.can_generate():
        target.generation_config = copy.deepcopy(model.generation_config)
    if tokenizer is not None:
        tokenizer.model_max_length = length
    return Conversion(target, tokenizer, type(model).__name__, copied, new, read.left_behind + unplaced)


class Source(NamedTuple):
    """A loaded source: the model, its head, its tensors with a counterpart in our models, and those without one."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    head: SourceHead
    fields: dict[str, Any]
    weights: Weights
    left_behind: list[str]


def read_source(
    source: str | os.PathLike | PreTrainedModel,
    to: str,
    own_fields: Mapping[str, Any],
    revision: str,
    trust_remote_code: bool,
) -> Source:
    """Load a source, once it is clear that it fits, and read it; arguments and errors as for `convert`."""
    if isinstance(source, PreTrainedModel):
        config, class_name = source.config, type(source).__name__
    else:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        class_name = next(iter(config.architectures or []), None)
    architecture, suffix = find_architecture(config, class_name)
    head = architecture.heads[suffix]
    check_fields(own_fields, to, architecture, head)
    if isinstance(source, PreTrainedModel):
        weights, left_behind = read_weights(source, architecture, head)
        return Source(source, None, head, converted_fields(config, architecture, head, None), weights, left_behind)
    # BERT's tokenizer, which some DistilBERTs have, gives token types too
    untyped = architecture.built_in.get("type_vocab_size") == 0
    tokenizer = load_tokenizer(
        source,
        config,
        revision=revision,
        trust_remote_code=trust_remote_code,
        **{"model_input_names": ["input_ids", "attention_mask"]} if untyped else {},
    )
    model, loading = getattr(transformers, architecture.prefix + suffix).from_pretrained(
        source, revision=revision, output_loading_info=True
    )
    weights, left_behind = read_weights(model, architecture, head, loading["missing_keys"])
    left_behind += sorted(loading["unexpected_keys"])
    return Source(model, tokenizer, head, converted_fields(config, architecture, head, tokenizer), weights, left_behind)


def find_architecture(config: PreTrainedConfig, class_name: str | None) -> tuple[SourceArchitecture, str]:
    """
    The architecture of a source, and what follows its prefix in the name of the source's class.

    Args:
        class_name: the source's class; `None`, of a checkpoint that does not say, for the base model.

    Raises:
        ValueError: if it does not fit.
    """
    takes = ", ".join(f"{model_type} ({source.prefix}...)" for model_type, source in SOURCES.items())
    if config.model_type not in SOURCES:
        raise ValueError(
            f"source is a {class_name} with model_type={config.model_type!r}, which does not fit: take one of {takes}"
        )
    architecture = SOURCES[config.model_type]
    suffix = "Model" if class_name is None else class_name.removeprefix(architecture.prefix)
    if suffix not in architecture.heads:
        heads = ", ".join(architecture.prefix + head for head in architecture.heads)
        raise ValueError(f"source is a {class_name}, whose head does not fit: take one of {heads}")
    for name, value in architecture.required.items():
        given = getattr(config, name, value)
        if given != value:
            raise ValueError(
                f"source is a {class_name} with {name}={given!r}, which does not fit: it must be {value!r}"
            )
    return architecture, suffix


def check_fields(own_fields: Mapping[str, Any], to: str, architecture: SourceArchitecture, head: SourceHead) -> None:
    """Raise a `ValueError` for fields that the family does not have, or that the source decides."""
    known = {entry.name for entry in fields(CONFIG_MAPPING[to])}  # type: ignore[arg-type]
    decided = {"max_position_embeddings", *COMMON_FIELDS, *architecture.fields, *architecture.built_in, *head.fields}
    for name, value in own_fields.items():
        if name not in known:
            raise ValueError(
                f"{name}={value!r} is not a field of {CONFIG_MAPPING[to].__name__}: it has {sorted(known)}"
            )
        if name in decided - FREE_FIELDS:
            right = "give max_length" if name == "max_position_embeddings" else "leave it out"
            raise ValueError(f"{name}={value!r} cannot be set, because the source decides it: {right}")


def load_tokenizer(source: str | os.PathLike, config: PreTrainedConfig, **options: Any) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a checkpoint.

    Raises:
        ValueError: if there is none, or it has more tokens than the model.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    # without files Transformers makes an empty tokenizer
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"source={str(source)!r} has no tokenizer: save it there too, by tokenizer.save_pretrained")
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"source={str(source)!r} has a tokenizer of {len(tokenizer)} tokens, more than its vocab_size="
            f"{config.vocab_size}: save the tokenizer that the model was trained with"
        )
    return tokenizer


def converted_fields(
    config: PreTrainedConfig,
    architecture: SourceArchitecture,
    head: SourceHead,
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """The fields of our configuration that follow from the source: from its tokenizer only what it does not say."""
    given = {name: getattr(config, name) for name in COMMON_FIELDS}
    given |= {name: getattr(config, theirs) for name, theirs in architecture.fields.items()}
    if given["intermediate_size"] is None:
        # GPT-2's default
        given["intermediate_size"] = 4 * config.hidden_size
    special = {} if tokenizer is None else token_fields(tokenizer)
    given |= {name: value for name, value in special.items() if given.get(name) is None}
    return {**given, **architecture.built_in, **head.fields}


def read_weights(
    model: PreTrainedModel, architecture: SourceArchitecture, head: SourceHead, absent: Collection[str] = ()
) -> tuple[Weights, list[str]]:
    """
    The source's weights by our names, those of the base model without a prefix, and the names of those that have none.

    Args:
        absent: names of weights that the checkpoint did not hold.

    Raises:
        ValueError: if weights are not where they belong, since something is wrapped around them.
    """
    wrapped = sorted(name for name, _ in model.named_parameters() if WRAPPED.search(name))
    if wrapped:
        raise ValueError(
            f"the source has {wrapped[0]}: it is adapted, pruned or parametrized. Merge that into its weights first "
            "(merge_and_unload of PEFT, prune.remove, remove_parametrizations)"
        )
    weights: Weights = {}
    left_behind = []
    # of tied weights the first
    for name, tensor in model.named_parameters():
        module_name, _, parameter = name.rpartition(".")
        module = model.get_submodule(module_name)
        key = re.sub(r"\.\d+\.", ".{}.", module_name.removeprefix(f"{model.base_model_prefix}."))
        ours = architecture.modules.get(key) or head.modules.get(key)
        if name in absent:
            continue
        if ours is None:
            left_behind.append(name)
            continue
        values = tensor.detach()
        if isinstance(module, Conv1D) and parameter == "weight":
            # GPT-2 keeps its matrices transposed
            values = values.T
        if ours == POSITIONS_MODULE and module.padding_idx is not None:
            # RoBERTa counts from behind the padding's position
            values = values[module.padding_idx + 1 :]
        layer = re.findall(r"\.(\d+)\.", module_name)
        parts = [ours] if isinstance(ours, str) else ours
        for number, (part, chunk) in enumerate(zip(parts, values.chunk(len(parts)), strict=True), start=1):
            origin = name if len(parts) == 1 else f"{name}, part {number} of {len(parts)}"
            weights[f"{part.format(*layer)}.{parameter}"] = origin, chunk
    return weights, left_behind


def resized_table(table: torch.Tensor, length: int, positions: str) -> torch.Tensor:
    """
    Position embeddings (N, d) for another length, (length, d). A shorter one keeps the first; a longer one repeats them
    (`tile`), or stretches them, so that the first and the last stay the first and the last (`interpolate`).
    """
    if positions == "tile" or length <= len(table):
        return table[torch.arange(length) % len(table)]
    # (1, d, N): a resampling of d channels
    stretched = F.interpolate(table.T[None].float(), size=length, mode="linear", align_corners=True)
    return stretched[0].T.to(table.dtype)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a model saves, tied weights once."""
    yield from model.named_parameters()
    saved = model.state_dict()
    yield from ((name, tensor) for name, tensor in model.named_buffers() if name in saved)


@torch.no_grad()
def copy_weights(weights: Weights, model: PreTrainedModel) -> tuple[dict[str, str], list[str]]:
    """
    Copy the weights into a model: the names of its tensors with what they are from, and what has no place in it.

    Raises:
        ValueError: if a shape differs.
    """
    tensors = dict(named_tensors(model))
    prefix = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    copied, unplaced = {}, []
    config = model.config
    # nothing is sorted into a row's first block in a causal model
    has_sorted = getattr(config, "sort_net", "none") != "none" and not config.is_causal
    added = 1 + (has_sorted and config.combine == "sum") + getattr(config, "mix_dot_product", False)
    for name, (origin, tensor) in weights.items():
        if added > 1 and name.endswith("attention.output.weight"):
            # so that the sum is no larger than the source's
            origin, tensor = f"{origin}, divided by {added}", tensor / added
        for shared, own in FAMILIES[model.config.model_type].own_modules.items():
            name = name.replace(f".{shared}.", f".{own}.")
        name = name if name in tensors else prefix + name
        if name not in tensors:
            unplaced.append(origin)
            continue
        if tensors[name].shape != tensor.shape:
            raise ValueError(
                f"the source's {origin} has shape {tuple(tensor.shape)}, but must have {tuple(tensors[name].shape)} by "
                "its configuration: take a source whose heads are all there and whose head is its task's"
            )
        tensors[name].copy_(tensor)
        copied[name] = origin
    return copied, unplaced


@torch.no_grad()
def start_new_weights(model: PreTrainedModel, copied: Mapping[str, str]) -> dict[str, str]:
    """Initialise the weights that have no source so that the model keeps the source's behaviour: name -> how."""
    config = model.config
    members = getattr(config, "synthesizers", [])
    zero_at_start = FAMILIES[config.model_type].zero_at_start(config)
    new = {}
    for name, tensor in named_tensors(model):
        if name in copied:
            continue
        new[name] = "in a new model"
        if name.endswith("attention.mixture") and "dot_product" in members:
            odds = DOT_PRODUCT_WEIGHT / (1 - DOT_PRODUCT_WEIGHT) * (len(members) - 1)
            tensor.zero_()
            tensor[:, members.index("dot_product")] = math.log(odds)
            new[name] = f"{DOT_PRODUCT_WEIGHT} on dot_product"
        elif name.endswith(zero_at_start):
            tensor.zero_()
            new[name] = "zero: no logits yet"
        elif name == "classifier.dense.weight" and "classifier.out_proj.weight" in copied:
            # GPT-2's classifier is one linear layer
            nn.init.eye_(tensor)
            new[name] = "the identity"
    return new


def of_every_layer(name: str) -> str:
    """A name with its layer's number left out."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
