"""The configuration fields that every family of the package shares."""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Auto class -> what follows the family's name in the class that it loads
AUTO_CLASSES = {
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
    "AutoModelForQuestionAnswering": "ForQuestionAnswering",
    "AutoModelForMultipleChoice": "ForMultipleChoice",
}
POSITION_EMBEDDING_TYPES = ("learned", "sinusoidal", "rope", "none")
POOLINGS = ("mean", "cls", "last")


def check_choice(field: str, value: Any, choices: Sequence[str]) -> None:
    """Raise a `ValueError` that names `field` and `value` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field}={value!r} is unknown: choose one of {', '.join(choices)}")


def check_at_least(field: str, value: float, minimum: float) -> None:
    """Raise a `ValueError` that names `field` and `value` unless `value >= minimum`."""
    if not value >= minimum:
        raise ValueError(f"{field}={value!r} is too small: it must be at least {minimum}")


def check_at_most(field: str, value: float, maximum: float) -> None:
    """Raise a `ValueError` that names `field` and `value` unless `value <= maximum`."""
    if not value <= maximum:
        raise ValueError(f"{field}={value!r} is too large: it must be at most {maximum}")


class SavedWithCode(PreTrainedConfig):
    """A configuration whose folder holds the source files that its `auto_map` names, where `synkhorn` saves it."""

    auto_map: dict | None = None
    # the installed package sets it, so that a saved configuration has its source files beside it;
    # in remote code it stays None, because Transformers itself copies flat source folders
    export_code: ClassVar[Any] = None

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save `config.json` and, where `synkhorn` is installed, the source files."""
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", str(save_directory).rstrip("/").split("/")[-1]), **kwargs)
        # a configuration from a Hub names that repository ("owner/name--module.Class"); the copy stands on its own
        self.auto_map = {auto: name.split("--")[-1] for auto, name in (self.auto_map or {}).items()}
        super().save_pretrained(save_directory)
        if self.export_code is not None:
            self.export_code(self.model_type, save_directory)


@strict
class BackboneConfig(SavedWithCode):
    r"""
    Fields of the backbone, a superset of BERT (`norm_first=False, embedding_norm=True, type_vocab_size=2`) and
    GPT-2 (`is_causal=True`, the other defaults).

    Args:
        vocab_size: number of tokens.
        hidden_size: width d of the model; a multiple of `num_attention_heads`.
        num_hidden_layers: number of layers, at most 10,000.
        num_attention_heads: number of heads H.
        intermediate_size: width of the feed-forward layer.
        hidden_act: activation of the feed-forward layer and of the masked-LM head, a name of Transformers' `ACT2FN`.
        norm_first: normalise before attention and feed-forward, with a final norm (GPT-2), or after them (BERT).
        embedding_norm: normalise the sum of the embeddings (BERT).
        type_vocab_size: number of token types; 0 for no token-type embedding.
        max_position_embeddings: the longest sequence N; longer input is an error.
        position_embedding_type: `learned`, `sinusoidal`, `rope` (rotates queries and keys of dot products) or `none`.
        rope_parameters: Transformers' rotary parameters (`rope_theta`, `rope_type`, ...), read with `rope` only.
        hidden_dropout: dropout of the embeddings and of each residual branch.
        attention_dropout: dropout of the attention weights.
        classifier_dropout: dropout before a classifier; `None` for `hidden_dropout`.
        layer_norm_eps: epsilon of the layer norms.
        initializer_range: standard deviation of the initial weights.
        pad_token_id, bos_token_id, eos_token_id, cls_token_id, sep_token_id, mask_token_id: special tokens.
        tie_word_embeddings: one matrix for the word embeddings and the output layer of the language models.
        sparse_prediction: in training a masked language model computes logits only where labels ask for them, which
            saves most of its head's work.
        is_causal: position i attends to positions <= i only.
        use_cache: whether a causal model returns a cache (`past_key_values`) unless a call says otherwise.
        add_cross_attention: attend to the states of an encoder too (`encoder_hidden_states`), in each layer after its
            own attention, as the decoder of an `EncoderDecoderModel` does.
        cross_attention_hidden_size: width of these states; `None` for `hidden_size`.
        classifier_pooling: what a sequence classifier reads: the `mean` of the valid tokens, the first (`cls`) or the
            `last` of them.
        classifier_act: activation between the two layers of a sequence classifier, a name of Transformers' `ACT2FN`:
            `tanh` (BERT), `relu` (DistilBERT), `linear` for none (GPT-2).

    Raises:
        ValueError: at construction and at an assignment for a value that no model can have; at construction, and when a
            model is made, for fields that do not fit each other.
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    norm_first: bool = True
    embedding_norm: bool = False
    type_vocab_size: int = 0
    max_position_embeddings: int = 512
    position_embedding_type: str = "learned"
    rope_parameters: dict | None = None
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    classifier_dropout: float | int | None = None
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    cls_token_id: int | None = None
    sep_token_id: int | None = None
    mask_token_id: int | None = None
    tie_word_embeddings: bool = True
    sparse_prediction: bool = False
    is_causal: bool = False
    use_cache: bool = True
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    classifier_pooling: str = "mean"
    classifier_act: str = "tanh"
    auto_map: dict | None = None

    def __post_init__(self, **kwargs):
        family = type(self).__name__.removesuffix("Config")
        if self.auto_map is None:
            self.auto_map = {"AutoConfig": f"configuration_{self.model_type}.{family}Config"} | {
                auto: f"modeling_{self.model_type}.{family}{suffix}" for auto, suffix in AUTO_CLASSES.items()
            }
        for name in kwargs:
            for field in get_close_matches(name, [field.name for field in fields(self)], n=1, cutoff=0.8):
                logger.warning(f"{name}={kwargs[name]!r} is not a field of {family}Config: did you mean {field}?")
        # before Transformers reads the fields, and before @strict wraps what its validators raise into no `ValueError`
        self.validate_architecture()
        super().__post_init__(**kwargs)

    def convert_rope_params_to_dict(self, **kwargs):
        return super().convert_rope_params_to_dict(**kwargs) if self.position_embedding_type == "rope" else kwargs

    @property
    def head_dim(self) -> int:
        """Width of one head, d / H."""
        return self.hidden_size // self.num_attention_heads

    def __setattr__(self, name: str, value: Any) -> None:
        self.check_field(name, value)
        super().__setattr__(name, value)

    # `@strict` would run anything named `validate_...`
    def check_field(self, field: str, value: Any) -> None:
        """Raise a `ValueError` for a value that a field cannot have, whatever the others are. Assignments call it."""
        if value is None:
            return
        if field in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "cross_attention_hidden_size",
        ):
            check_at_least(field, value, 1)
        if field == "num_hidden_layers":
            # a huge tensor fails at once, but a huge number of layers would loop forever
            check_at_most(field, value, 10_000)
        elif field == "type_vocab_size":
            check_at_least(field, value, 0)
        elif field == "initializer_range" and not 0 <= value < math.inf:
            raise ValueError(f"initializer_range={value!r} must be finite, and not negative")
        elif field == "layer_norm_eps" and not 0 < value < math.inf:
            raise ValueError(f"layer_norm_eps={value!r} must be positive and finite")
        elif field in ("hidden_act", "classifier_act"):
            check_choice(field, value, list(ACT2FN))
        elif field == "position_embedding_type":
            check_choice(field, value, POSITION_EMBEDDING_TYPES)
        elif field == "classifier_pooling":
            check_choice(field, value, POOLINGS)
        elif field in ("hidden_dropout", "attention_dropout", "classifier_dropout") and not 0 <= value < 1:
            raise ValueError(f"{field}={value!r} must lie in [0, 1)")

    def validate_architecture(self):
        """Raise a `ValueError` for fields that no model can have together; a model's constructor calls it too."""
        super().validate_architecture()
        for field in fields(self):
            # a list may have been changed in place
            self.check_field(field.name, getattr(self, field.name))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        for token in ("pad", "bos", "eos", "cls", "sep", "mask"):
            value = getattr(self, f"{token}_token_id")
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < self.vocab_size:
                    raise ValueError(f"{token}_token_id={value} must lie in the vocabulary, 0 to {self.vocab_size - 1}")
        if self.position_embedding_type == "rope":
            self.check_rotary()

    def check_rotary(self):
        if self.head_dim % 2:
            raise ValueError(
                f"position_embedding_type='rope' needs an even head width, but hidden_size={self.hidden_size} over "
                f"num_attention_heads={self.num_attention_heads} gives {self.head_dim}"
            )
        if isinstance(self.rope_parameters, dict):
            check_choice(
                "rope_type", self.rope_parameters.get("rope_type", "default"), ["default", *ROPE_INIT_FUNCTIONS]
            )
            if self.rope_parameters.get("rope_type") == "longrope":
                raise ValueError(
                    "rope_type='longrope' rotates a token by the length of its batch: choose another, such as yarn"
                )
            part = self.rope_parameters.get("partial_rotary_factor", 1.0)
            if part != 1:
                raise ValueError(
                    f"partial_rotary_factor={part!r} in rope_parameters must be 1: all features are rotated"
                )

    def length_fields(self, max_position_embeddings: int) -> dict[str, Any]:
        """The fields that change with the maximal length, with their new values."""
        return {"max_position_embeddings": max_position_embeddings}

    def resized(self, max_position_embeddings: int) -> "BackboneConfig":
        """A copy for sequences of up to `max_position_embeddings` tokens."""
        check_at_least("max_position_embeddings", max_position_embeddings, 1)
        config = copy.deepcopy(self)
        for field, value in self.length_fields(max_position_embeddings).items():
            setattr(config, field, value)
        config.validate_architecture()
        return config


def most_even_pair(length: int) -> tuple[int, int]:
    """Two sizes (a, b), b >= a, as equal as possible, that cover `length`: a * b >= length > (a - 1) * b."""
    b = math.isqrt(length - 1) + 1
    return math.ceil(length / b), b
