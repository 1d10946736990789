"""Efficient-attention families for Hugging Face Transformers. Importing the package registers its Auto classes."""

from typing import TYPE_CHECKING, Any

from .configuration.configuration_encoder_decoder import SynkhornEncoderDecoderConfig
from .configuration.configuration_sinkhorn import SinkhornConfig
from .configuration.configuration_synthesizer import SynthesizerConfig
from .conversion import Conversion, convert
from .families import FAMILIES, Family, register
from .modeling.modeling_encoder_decoder import SynkhornEncoderDecoderModel
from .modeling.modeling_sinkhorn import (
    SinkhornForCausalLM,
    SinkhornForMaskedLM,
    SinkhornForMultipleChoice,
    SinkhornForQuestionAnswering,
    SinkhornForSequenceClassification,
    SinkhornForTokenClassification,
    SinkhornModel,
    SinkhornPreTrainedModel,
)
from .modeling.modeling_synthesizer import (
    SynthesizerForCausalLM,
    SynthesizerForMaskedLM,
    SynthesizerForMultipleChoice,
    SynthesizerForQuestionAnswering,
    SynthesizerForSequenceClassification,
    SynthesizerForTokenClassification,
    SynthesizerModel,
    SynthesizerPreTrainedModel,
)
from .modeling.sinkhorn_sort import causal_sinkhorn, sinkhorn
from .tokenization.tokenization_synkhorn import byte_tokenizer, token_fields, train_tokenizer

if TYPE_CHECKING:
    from .annealing import AnnealSortTemperature

__version__ = "0.1.0"
__all__ = [
    "FAMILIES",
    "AnnealSortTemperature",
    "Conversion",
    "Family",
    "SinkhornConfig",
    "SinkhornForCausalLM",
    "SinkhornForMaskedLM",
    "SinkhornForMultipleChoice",
    "SinkhornForQuestionAnswering",
    "SinkhornForSequenceClassification",
    "SinkhornForTokenClassification",
    "SinkhornModel",
    "SinkhornPreTrainedModel",
    "SynkhornEncoderDecoderConfig",
    "SynkhornEncoderDecoderModel",
    "SynthesizerConfig",
    "SynthesizerForCausalLM",
    "SynthesizerForMaskedLM",
    "SynthesizerForMultipleChoice",
    "SynthesizerForQuestionAnswering",
    "SynthesizerForSequenceClassification",
    "SynthesizerForTokenClassification",
    "SynthesizerModel",
    "SynthesizerPreTrainedModel",
    "byte_tokenizer",
    "causal_sinkhorn",
    "convert",
    "register",
    "sinkhorn",
    "token_fields",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    # a callback of the Trainer, which takes a second or two to import
    if name != "AnnealSortTemperature":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .annealing import AnnealSortTemperature

    return AnnealSortTemperature
