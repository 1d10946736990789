"""The configuration of an encoder and a decoder in one folder, with their code."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, EncoderDecoderConfig, PreTrainedConfig

from .configuration_backbone import SavedWithCode
from .configuration_sinkhorn import SinkhornConfig
from .configuration_synthesizer import SynthesizerConfig

FAMILY_CONFIGS = {config_class.model_type: config_class for config_class in (SinkhornConfig, SynthesizerConfig)}


@strict
class SynkhornEncoderDecoderConfig(EncoderDecoderConfig, SavedWithCode):
    """
    Transformers' `EncoderDecoderConfig`, which finds our families by itself, also where this package is not installed.

    Args:
        encoder: configuration of the encoder, one of ours or of Transformers, or its fields.
        decoder: that of the decoder.
        pad_token_id, decoder_start_token_id: of the decoder.
    """

    encoder: PreTrainedConfig | dict | None = None
    decoder: PreTrainedConfig | dict | None = None

    def __post_init__(self, **kwargs):
        if self.auto_map is None:
            self.auto_map = {
                "AutoConfig": "configuration_encoder_decoder.SynkhornEncoderDecoderConfig",
                "AutoModelForSeq2SeqLM": "modeling_encoder_decoder.SynkhornEncoderDecoderModel",
            }
        for part in ("encoder", "decoder"):
            fields = getattr(self, part)
            if isinstance(fields, dict):
                family = FAMILY_CONFIGS.get(fields.get("model_type"))
                setattr(self, part, AutoConfig.for_model(**fields) if family is None else family.from_dict(fields))
        # not `EncoderDecoderConfig`'s own, which in Transformers 5.17 takes no part that is a configuration already
        super(EncoderDecoderConfig, self).__post_init__(**kwargs)
