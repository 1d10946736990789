"""Efficient-attention families for Hugging Face Transformers. Importing the package registers its Auto classes."""

from types import ModuleType

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .configuration.configuration_backbone import AUTO_CLASSES, BackboneConfig
from .configuration.configuration_sinkhorn import SinkhornConfig
from .configuration.configuration_synthesizer import SynthesizerConfig
from .conversion import Conversion, convert
from .hub_export import export_code
from .modeling import modeling_sinkhorn, modeling_synthesizer
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

__version__ = "0.1.0"
__all__ = [
    "Conversion",
    "SinkhornConfig",
    "SinkhornForCausalLM",
    "SinkhornForMaskedLM",
    "SinkhornForMultipleChoice",
    "SinkhornForQuestionAnswering",
    "SinkhornForSequenceClassification",
    "SinkhornForTokenClassification",
    "SinkhornModel",
    "SinkhornPreTrainedModel",
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
    "sinkhorn",
    "token_fields",
    "train_tokenizer",
]


def _register(config_class: type[BackboneConfig], modeling: ModuleType) -> None:
    transformers.AutoConfig.register(config_class.model_type, config_class)
    family = config_class.__name__.removesuffix("Config")
    for auto, suffix in AUTO_CLASSES.items():
        getattr(transformers, auto).register(config_class, getattr(modeling, family + suffix))
    # by this name the Trainer knows, where it smooths labels, that they are to be shifted
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config_class.model_type] = f"{family}ForCausalLM"


BackboneConfig.export_code = staticmethod(export_code)
_register(SynthesizerConfig, modeling_synthesizer)
_register(SinkhornConfig, modeling_sinkhorn)
