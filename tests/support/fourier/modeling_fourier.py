"""A family that only the tests know: FNet's mixing (Lee-Thorp et al., arXiv 2105.03824, section 3.1), also causal."""

import math

import torch
from transformers.generation import GenerationMixin

from ..configuration.configuration_fourier import FourierConfig
from .backbone_attention import BackboneAttention
from .modeling_backbone import BackboneLayer, BackboneModel, BackbonePreTrainedModel
from .modeling_heads import (
    BackboneForCausalLM,
    BackboneForMaskedLM,
    BackboneForMultipleChoice,
    BackboneForQuestionAnswering,
    BackboneForSequenceClassification,
    BackboneForTokenClassification,
)


class FourierAttention(BackboneAttention):
    """
    Y = Re(F_N V F_w) for each head, with zeros up to N = `max_position_embeddings`, so that the length of a row changes
    no output. A causal token sums over those up to itself.
    """

    def project(self, hidden_states, position_embeddings):
        values = self.project_heads(self.value, hidden_states)
        return None, values[..., :0], values

    def attend(self, inputs, keys, values, rows):
        parts = []
        for v in rows.split(values):
            if rows.mask is not None:
                v = v * rows.mask[:, None, :, None]
            parts.append(self.mixed(v, torch.arange(v.shape[2], device=v.device)[None]))
        return rows.join(parts)

    def attend_literally(self, inputs, keys, values, rows):
        mask, values = rows.row_mask(), rows.to_rows(values.transpose(1, 2)).transpose(1, 2)
        values = values if mask is None else values * mask[:, None, :, None]
        return self.mixed(values, torch.arange(values.shape[2], device=values.device)[None]), None

    def attend_cached(self, inputs, states, rows, layer):
        return self.mixed(states[1], rows.new_positions()), None

    def mixed(self, values, positions):
        """(R, H, T, w) at positions 0 to T - 1, for queries at (1 or R, L) positions -> (R, H, L, w)"""
        queries, keys = positions[..., None], torch.arange(values.shape[2], device=values.device)
        seen = keys <= queries if self.config.is_causal else torch.ones_like(keys <= queries)
        size = self.config.max_position_embeddings
        turns = torch.polar(seen.to(values.dtype), -2 * math.pi / size * (queries * keys).to(values.dtype))
        return (turns[:, None] @ torch.fft.fft(values)).real / math.sqrt(size)


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
