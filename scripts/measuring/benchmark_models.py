"""
The models of the benchmark: our variants, the floor that no attention can be faster than, and the peers.

All have one width, depth, vocabulary and number of heads, random weights and no dropout. A feed-forward layer that is
gated has two thirds of the others' width, so that it has as many weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from ...configuration.configuration_backbone import BackboneConfig
from ...configuration.configuration_synthesizer import SYNTHESIZERS, SynthesizerConfig
from ...families import FAMILIES
from ...modeling.modeling_backbone import BackboneLayer, BackboneModel
from ...modeling.modeling_heads import BackboneForSequenceClassification
from ...modeling.rows import Rows

FLOOR, BERT, GPT2 = "floor", "bert", "gpt2"
CAUSAL = "_causal"
# entry -> the family and its own fields
ENTRIES = {
    entry: (family.name, dict(fields)) for family in FAMILIES.values() for entry, fields in family.benchmark.items()
}
# of the package sinkhorn-transformer
LUCIDRAINS: dict[str, dict] = {"lucidrains": {}, "lucidrains_sortcut": {"n_sortcut": 2}}
OTHER_PACKAGE = "sinkhorn_transformer"


@dataclass(frozen=True)
class Sizes:
    """The fields that all models share; `length` is the longest that they take."""

    length: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int

    @property
    def fields(self) -> dict[str, int]:
        """The sizes by the names that most configurations have."""
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": 4 * self.hidden_size,
            "max_position_embeddings": self.length,
            "pad_token_id": 0,
        }


@dataclass
class SizeArguments:
    """The sizes of all models of a benchmark."""

    hidden_size: int = field(default=256, metadata={"help": "Width."})
    num_hidden_layers: int = field(default=4, metadata={"help": "Layers."})
    num_attention_heads: int = field(default=4, metadata={"help": "Heads."})
    vocab_size: int = field(default=8192, metadata={"help": "Tokens of the vocabulary, of a tokenizer too."})

    def sizes(self, length: int) -> Sizes:
        """Those of a model that takes sequences of `length`."""
        return Sizes(length, self.hidden_size, self.num_hidden_layers, self.num_attention_heads, self.vocab_size)


class PassValues(torch.autograd.Function):
    """The values, with a gradient for queries and keys too, so that their projections have their backward work."""

    @staticmethod
    def forward(ctx, queries, keys, values):
        return values.view_as(values)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, gradient, gradient


class IdentityAttention(nn.Module):
    """An attention's four projections with the identity between them: every token sees itself alone."""

    def __init__(self, config: BackboneConfig, layer_idx: int):
        super().__init__()
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, rows: Rows, **kwargs) -> tuple[torch.Tensor, None]:
        """(1, T, d) -> (1, T, d) and no weights."""
        queries, keys, values = (projection(hidden_states) for projection in (self.query, self.key, self.value))
        return self.output(PassValues.apply(queries, keys, values)), None


class FloorModel(BackboneModel):
    """The trunk of both families without attention: the cost of projections and feed-forward layers."""

    config_class = SynthesizerConfig
    attention_class = IdentityAttention  # type: ignore[assignment]
    _can_record_outputs = {"hidden_states": BackboneLayer}


class FloorForSequenceClassification(BackboneForSequenceClassification):
    """The floor with a classifier."""

    config_class = SynthesizerConfig
    model_class = FloorModel


def peers(sizes: Sizes) -> dict[str, dict[str, Any]]:
    """
    The configuration of each peer of Transformers, with its `model_type`, by the name in the tables.

    Window, block and landmarks are of one size, 64 to either side of a token or so; `attn_implementation` is the
    fastest that the peer has.
    """
    width, heads, layers = sizes.hidden_size, sizes.num_attention_heads, sizes.num_hidden_layers
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    gated = {"intermediate_size": 8 * round(width / 3)}
    bert = {"model_type": "bert", **no_dropout}
    reformer_dropout = {"hidden_dropout_prob": 0.0, "local_attention_probs_dropout_prob": 0.0}
    return {
        BERT: {**bert, "attn_implementation": "sdpa"},
        "bert_eager": {**bert, "attn_implementation": "eager"},
        "modernbert": {"model_type": "modernbert", **gated, "attn_implementation": "sdpa"},
        # positions count from the padding token's id on
        "longformer": {
            "model_type": "longformer",
            **no_dropout,
            "attention_window": 128,
            "max_position_embeddings": sizes.length + 1,
        },
        # attends fully up to 704 tokens, as Transformers has it
        "bigbird": {
            "model_type": "big_bird",
            **no_dropout,
            "attention_type": "block_sparse",
            "block_size": 64,
            "use_cache": False,
        },
        "nystromformer": {
            "model_type": "nystromformer",
            **no_dropout,
            "num_landmarks": 64,
            "segment_means_seq_len": sizes.length,
        },
        "fnet": {"model_type": "fnet", "hidden_dropout_prob": 0.0},
        "reformer": {
            "model_type": "reformer",
            **reformer_dropout,
            "attn_layers": (["local", "lsh"] * layers)[:layers],
            "attention_head_size": width // heads,
            "feed_forward_size": 4 * width,
            "axial_pos_embds": False,
            "use_cache": False,
        },
        "mamba2": {
            "model_type": "mamba2",
            "head_dim": 2 * width // (2 * heads),
            "num_heads": 2 * heads,
            "n_groups": 1,
            "state_size": 64,
            "chunk_size": 32,
            "use_cache": False,
        },
        GPT2: {
            "model_type": "gpt2",
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "use_cache": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "attn_implementation": "sdpa",
        },
        "llama": {"model_type": "llama", **gated, "use_cache": False, "attn_implementation": "sdpa"},
    }


PEERS = [*peers(SizeArguments().sizes(64)), *LUCIDRAINS, "lucidrains" + CAUSAL]
# in the order of the tables
MODELS = [
    FLOOR,
    *ENTRIES,
    *(entry + CAUSAL for family in FAMILIES.values() for entry in family.causal_benchmark),
    *PEERS,
]


def entry_of(name: str) -> tuple[str, dict[str, Any]]:
    """The family of one of our models, and its own fields; members of a Synthesizer may be joined by +."""
    variant = name.removesuffix(CAUSAL)
    return ENTRIES.get(variant, ("synthesizer", {"synthesizers": variant.split("+")}))


def family(name: str) -> str:
    """`floor`, `peer`, or the family."""
    if name == FLOOR:
        return FLOOR
    return "peer" if name in PEERS else entry_of(name)[0]


def is_causal(name: str) -> bool:
    """Whether a token of the model sees no later one."""
    return name.endswith(CAUSAL) or name in ("mamba2", GPT2, "llama")


def configuration(name: str, sizes: Sizes, **fields: Any) -> tuple[Any, dict[str, Any]]:
    """The configuration of one of Transformers' or our models, and what else its Auto class is given."""
    if family(name) == "peer":
        own = peers(sizes)[name]
        implementation = {key: own.pop(key) for key in ("attn_implementation",) if key in own}
        return AutoConfig.for_model(own.pop("model_type"), **sizes.fields | own | fields), implementation
    own = {"hidden_dropout": 0.0, "is_causal": name.endswith(CAUSAL), "use_cache": False} | fields
    model_type, variant = entry_of("dot_product" if name == FLOOR else name)
    return AutoConfig.for_model(model_type, **sizes.fields | variant | own), {}


def base_model(name: str, sizes: Sizes) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """
    A model without a head, and the function from (B, L) ids to (B, L, d) hidden states.

    Raises:
        ModuleNotFoundError: if it is of a package that is not installed.
    """
    variant = name.removesuffix(CAUSAL)
    if variant in LUCIDRAINS:
        if find_spec(OTHER_PACKAGE) is None:
            raise ModuleNotFoundError("sinkhorn-transformer is not installed: pip install sinkhorn-transformer")
        from sinkhorn_transformer import SinkhornTransformerLM

        model = SinkhornTransformerLM(
            num_tokens=sizes.vocab_size,
            dim=sizes.hidden_size,
            max_seq_len=sizes.length,
            depth=sizes.num_hidden_layers,
            heads=sizes.num_attention_heads,
            bucket_size=64,
            n_top_buckets=1,
            causal=name.endswith(CAUSAL),
            return_embeddings=True,
            **LUCIDRAINS[variant],
        )
        return model, model
    config, implementation = configuration(name, sizes)
    if name == FLOOR:
        model = FloorModel(config)
    else:
        # BERT's pooling layer is not read
        pooled = {"add_pooling_layer": False} if config.model_type in ("bert", "longformer", "big_bird", "fnet") else {}
        model = AutoModel.from_config(config, **implementation, **pooled)
    return model, lambda ids: model(ids).last_hidden_state


def classifier(name: str, sizes: Sizes) -> nn.Module:
    """
    A model with a classifier of two classes, to which token 0 is padding.

    Raises:
        ValueError: if there is none.
    """
    if name.startswith("lucidrains") or name == "mamba2":
        raise ValueError(f"{name} has no classifier")
    config, implementation = configuration(name, sizes, num_labels=2)
    if name == FLOOR:
        return FloorForSequenceClassification(config)
    return AutoModelForSequenceClassification.from_config(config, **implementation)


def weights(model: nn.Module) -> int:
    """How many weights a model has beside its embeddings."""
    embedded = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return sum(weight.numel() for weight in model.parameters() if id(weight) not in embedded)


def check_models(names: Iterable[str]) -> None:
    """Raise a `ValueError` for a name that is neither a model nor members of a Synthesizer joined by +."""
    for name in names:
        variant = name.removesuffix(CAUSAL)
        if name not in MODELS and variant not in ENTRIES and not set(variant.split("+")) <= set(SYNTHESIZERS):
            raise ValueError(
                f"--models {name!r} is unknown: choose among {', '.join(MODELS)}, "
                f"or join {', '.join(SYNTHESIZERS)} by +"
            )
