"""An encoder and a decoder in one folder, with their code."""

from collections.abc import Mapping
from typing import Any

from transformers import EncoderDecoderModel, PreTrainedConfig, PreTrainedModel

from ..configuration.configuration_encoder_decoder import SynkhornEncoderDecoderConfig
from .modeling_sinkhorn import SinkhornForCausalLM, SinkhornModel
from .modeling_synthesizer import SynthesizerForCausalLM, SynthesizerModel

ENCODERS = {"sinkhorn": SinkhornModel, "synthesizer": SynthesizerModel}
DECODERS = {"sinkhorn": SinkhornForCausalLM, "synthesizer": SynthesizerForCausalLM}


class SynkhornEncoderDecoderModel(EncoderDecoderModel):
    """
    Transformers' `EncoderDecoderModel` of any two parts of which one or both are ours. What it saves loads without this
    package: `AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)`.

    Args:
        config: of both; that of the two parts if not given.
        encoder: an encoder without a head; a new one if not given.
        decoder: a causal language model with `add_cross_attention`; a new one if not given.
    """

    config_class = SynkhornEncoderDecoderConfig

    def __init__(
        self,
        config: PreTrainedConfig | None = None,
        encoder: PreTrainedModel | None = None,
        decoder: PreTrainedModel | None = None,
    ):
        if type(config).__name__ == self.config_class.__name__:
            # `AutoConfig` imports a checkpoint's configuration under another name than its model does
            config.__class__ = self.config_class
        elif encoder is not None and decoder is not None:
            config = self.config_class.from_encoder_decoder_configs(encoder.config, decoder.config)
        if isinstance(config, self.config_class):
            encoder = encoder or part_of(ENCODERS, config.encoder)
            decoder = decoder or part_of(DECODERS, config.decoder)
        super().__init__(config, encoder, decoder)


def part_of(classes: Mapping[str, Any], config: Any) -> PreTrainedModel | None:
    """A new model of ours, or `None` where the Auto classes of Transformers are to find it."""
    return classes[config.model_type]._from_config(config) if config.model_type in classes else None
