"""A family that only the tests know: FNet's mixing (Lee-Thorp et al., arXiv 2105.03824, section 3.1), also causal."""

import math

import torch
from torch import nn
from transformers.generation import GenerationMixin

from ..configuration.configuration_fourier import FourierConfig
from .modeling_backbone import BackboneLayer, BackboneModel, BackbonePreTrainedModel
from .modeling_heads import (
    BackboneForCausalLM,
    BackboneForMaskedLM,
    BackboneForMultipleChoice,
    BackboneForQuestionAnswering,
    BackboneForSequenceClassification,
    BackboneForTokenClassification,
)


class FourierAttention(nn.Module):
    """
    Y = Re(F_N X F_d), with zeros for padding and up to N = `max_position_embeddings`, so that neither changes a token's
    output. A causal token sums over those before it only.
    """

    def __init__(self, config: FourierConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, new_tokens=None, **kwargs):
        """(B, L, d) -> (B, L, d), and no weights."""
        values = hidden_states[:, None]  # (B, 1, L, d)
        if past_key_values is not None:
            _, values = past_key_values.update(values[..., :0], values, self.layer_idx, new_tokens)
        values = values[:, 0, : new_tokens.end]  # (B, T, d)
        rows, columns = new_tokens.positions[..., None], torch.arange(new_tokens.end, device=values.device)
        seen = columns <= rows if self.config.is_causal else torch.ones_like(columns <= rows)
        if attention_mask is not None:
            seen = seen & attention_mask[:, None]
        size = self.config.max_position_embeddings
        turns = torch.polar(seen.to(values.dtype), -2 * math.pi / size * (rows * columns).to(values.dtype))
        mixed = (turns @ torch.fft.fft(values)).real / math.sqrt(size)
        return self.output(mixed), None


class FourierPreTrainedModel(BackbonePreTrainedModel):
    config_class = FourierConfig
    attention_class = FourierAttention
    _can_record_outputs = {"hidden_states": BackboneLayer}


class FourierModel(FourierPreTrainedModel, BackboneModel):
    pass


class FourierForMaskedLM(FourierPreTrainedModel, BackboneForMaskedLM):
    model_class = FourierModel


class FourierForCausalLM(FourierPreTrainedModel, BackboneForCausalLM, GenerationMixin):
    model_class = FourierModel


class FourierForSequenceClassification(FourierPreTrainedModel, BackboneForSequenceClassification):
    model_class = FourierModel


class FourierForTokenClassification(FourierPreTrainedModel, BackboneForTokenClassification):
    model_class = FourierModel


class FourierForQuestionAnswering(FourierPreTrainedModel, BackboneForQuestionAnswering):
    model_class = FourierModel


class FourierForMultipleChoice(FourierPreTrainedModel, BackboneForMultipleChoice):
    model_class = FourierModel
