"""The Synthesizer family (Tay et al., arXiv 2005.00743): its members, their mixture as attention, and its models."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_synthesizer import SynthesizerConfig
from .backbone_attention import BackboneAttention
from .cross_attention import CrossAttention
from .modeling_backbone import BackboneLayer, BackboneModel, BackbonePreTrainedModel
from .modeling_heads import (
    BackboneForCausalLM,
    BackboneForMaskedLM,
    BackboneForMultipleChoice,
    BackboneForQuestionAnswering,
    BackboneForSequenceClassification,
    BackboneForTokenClassification,
)
from .rows import Rows, is_static
from .softmax_attention import fused_attention, literal_attention, seen_attention, split_heads
from .synthesizer_kernels import tiled_attention
from .synthesizer_logits import Logits, add_features, add_logits

# logits of a batch that are written out rather than worked on in tiles: 8 MB in float32
WRITTEN_AT_MOST = 2**21


class DotProduct(nn.Module):
    """S = Q K^T / sqrt(dh), the Transformer's own attention, rotated where the positions are rotary."""

    def __init__(self, config: SynthesizerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scaling = config.head_dim**-0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, position_embeddings) -> Logits:
        queries = split_heads(self.query(hidden_states), self.num_heads)  # (1, H, T, dh)
        keys = split_heads(self.key(hidden_states), self.num_heads)
        if position_embeddings is not None:
            queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        return Logits(queries=queries * self.scaling, keys=keys)


class Dense(nn.Module):
    """S = relu(X W1 + b1) W2 + b2, W2, b2 cut to L columns (section 3.1, dense): attention with learned keys W2^T."""

    def __init__(self, config: SynthesizerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        hidden_size = config.synthesizer_hidden_size or config.head_dim
        self.input = nn.Linear(config.hidden_size, self.num_heads * hidden_size)
        # W2^T, so that a length is a slice of rows
        self.weight = nn.Parameter(torch.empty(self.num_heads, config.max_position_embeddings, hidden_size))
        self.bias = nn.Parameter(torch.empty(self.num_heads, config.max_position_embeddings))

    def initialize_parameters(self, std: float):
        init.normal_(self.weight, std=std)
        init.zeros_(self.bias)

    def forward(self, hidden_states, position_embeddings) -> Logits:
        hidden = split_heads(self.input(hidden_states).relu(), self.num_heads)  # (1, H, T, s)
        return Logits(queries=hidden, keys=self.weight, key_bias=self.bias)


class Random(nn.Module):
    """S = R, one trained matrix a head (section 3.1, random), cut to L rows and columns."""

    def __init__(self, config: SynthesizerConfig):
        super().__init__()
        self.weight = nn.Parameter(self.empty(config))

    @staticmethod
    def empty(config: SynthesizerConfig) -> torch.Tensor:
        return torch.empty(config.num_attention_heads, *[config.max_position_embeddings] * 2)

    def initialize_parameters(self, std: float):
        # not the small range of other weights: logits that differ are what sets a random synthesizer apart
        init.normal_(self.weight, std=1.0)

    def forward(self, hidden_states, position_embeddings) -> Logits:
        return Logits(matrix=self.weight)


class FixedRandom(Random):
    """S = R, drawn once, saved with the model and never trained."""

    def __init__(self, config: SynthesizerConfig):
        nn.Module.__init__(self)
        self.register_buffer("weight", self.empty(config))


class FactorizedRandom(nn.Module):
    """S = R1 R2^T of rank k (section 3.2, factorized random)."""

    def __init__(self, config: SynthesizerConfig):
        super().__init__()
        shape = config.num_attention_heads, config.max_position_embeddings, config.rank
        self.query_weight = nn.Parameter(torch.empty(shape))  # R1
        self.key_weight = nn.Parameter(torch.empty(shape))  # R2

    def initialize_parameters(self, std: float):
        # logits of variance 1, as in `Random`
        for weight in (self.query_weight, self.key_weight):
            init.normal_(weight, std=weight.shape[-1] ** -0.25)

    def forward(self, hidden_states, position_embeddings) -> Logits:
        return Logits(queries=self.query_weight, keys=self.key_weight)


class FactorizedDense(nn.Module):
    """S[i, p b + q] = A[i, p] B[i, q] with A and B dense in X_i (section 3.2, factorized dense)."""

    def __init__(self, config: SynthesizerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        hidden_size = config.synthesizer_hidden_size or config.head_dim
        self.input = nn.Linear(config.hidden_size, self.num_heads * hidden_size)
        slow, fast = config.factor_sizes
        self.slow_weight = nn.Parameter(torch.empty(self.num_heads, hidden_size, slow))
        self.slow_bias = nn.Parameter(torch.empty(self.num_heads, 1, slow))
        self.fast_weight = nn.Parameter(torch.empty(self.num_heads, hidden_size, fast))
        self.fast_bias = nn.Parameter(torch.empty(self.num_heads, 1, fast))

    def initialize_parameters(self, std: float):
        # each factor's gradient is scaled by the other: both small would not learn
        for weight in (self.slow_weight, self.fast_weight):
            init.normal_(weight, std=weight.shape[1] ** -0.5)
        init.zeros_(self.slow_bias)
        init.zeros_(self.fast_bias)

    def forward(self, hidden_states, position_embeddings) -> Logits:
        hidden = split_heads(self.input(hidden_states).relu(), self.num_heads)  # (1, H, T, s)
        slow = hidden @ self.slow_weight + self.slow_bias  # (1, H, T, a)
        fast = hidden @ self.fast_weight + self.fast_bias  # (1, H, T, b)
        return Logits(slow=slow, fast=fast)


MEMBERS = {
    "dot_product": DotProduct,
    "dense": Dense,
    "random": Random,
    "fixed_random": FixedRandom,
    "factorized_random": FactorizedRandom,
    "factorized_dense": FactorizedDense,
}


class SynthesizerAttention(BackboneAttention):
    """
    Multi-head attention with synthesised logits: `Y = softmax(mask(sum_i alpha_i S_i)) V` for the members S_i that the
    configuration names (section 3.3, mixtures: weighted before the one softmax).

    A member maps the tokens, (1, T, d), and the rotary embedding to the terms of its `Logits`. The literal form writes
    the sum of all terms out. The fast form is one fused call over features (`dot_product`, `dense`,
    `factorized_random`), or tiles of rows, whose weights rows of one length share where no term depends on tokens; few
    logits, those of short rows, are written out.
    """

    mixture: nn.Parameter | None

    def __init__(self, config: SynthesizerConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.members = nn.ModuleDict({name: MEMBERS[name](config) for name in config.synthesizers})
        weighted = len(self.members) > 1 and config.mixture_weighting == "softmax"
        mixture = nn.Parameter(torch.empty(config.num_attention_heads, len(self.members))) if weighted else None
        self.register_parameter("mixture", mixture)

    def initialize_parameters(self, std: float):
        if self.mixture is not None:
            init.zeros_(self.mixture)

    def project(self, hidden_states, position_embeddings):
        """-> the terms of each member by its name, alpha multiplied in, and keys and values, (1, H, T, w)."""
        members = {name: member(hidden_states, position_embeddings) for name, member in self.members.items()}
        if self.mixture is not None:
            alphas = self.mixture.softmax(-1).unbind(-1)  # (H,) each
            members = {name: terms.scaled(alpha) for (name, terms), alpha in zip(members.items(), alphas, strict=True)}
        values = self.project_heads(self.value, hidden_states)
        # keys only where a member compares with them
        keys = members["dot_product"].keys if "dot_product" in members else values[..., :0]
        return members, keys, values

    def attend_literally(self, members, keys, values, rows):
        values = rows.to_rows(values.transpose(1, 2)).transpose(1, 2)
        logits = sum(terms.padded(rows).written(rows.longest) for terms in members.values())
        return literal_attention(logits, values, rows.row_mask(), self.config.is_causal, self.dropout)

    def attend_cached(self, members, states, rows, layer):
        keys, values = states
        members = {name: terms.at_new_tokens(rows) for name, terms in members.items()}
        if "dot_product" in members:
            members["dot_product"] = members["dot_product"]._replace(keys=keys)
        logits = sum(terms.written(rows.end) for terms in members.values())
        outputs, weights = seen_attention(logits, values, rows.seen_positions(), self.dropout)
        return outputs, weights if self.config._attn_implementation == "eager" else None

    def attend(self, members, keys, values, rows):
        only_features = all(terms.queries is not None for terms in members.values())
        if only_features and (self.dropout or self.is_fused(list(members.values()), values)):
            return self.feature_attention(list(members.values()), values, rows)
        # the tiles are computed again in the backward pass, without what dropout drew
        if self.dropout or self.is_short(list(members.values()), values, rows):
            outputs, _ = self.attend_literally(members, keys, values, rows)
            return rows.to_tokens(outputs.transpose(1, 2).flatten(2))
        return tiled_attention(add_logits(list(members.values()), rows), values, rows, self.config.is_causal)

    def is_short(self, members: list[Logits], values: torch.Tensor, rows: Rows) -> bool:
        """Whether the logits are so few that to write them out takes less time than a loop over tiles."""
        if is_static() or rows.num_rows * values.shape[1] * rows.longest**2 > WRITTEN_AT_MOST:
            return False
        # weights that all rows share are one tile a head, of any number of rows
        return rows.has_one_length or any(x.dim() == 4 for terms in members for _, x in terms.items())

    def feature_attention(self, members: list[Logits], values: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Attention whose logits are products of features, as a fused call for each group of rows: -> (1, T, H dh)."""
        is_causal = self.config.is_causal
        # valid keys come first: a causal query sees no other
        seen = None if rows.mask is None or is_causal else rows.mask[:, None, None]
        outputs = []
        for v, *of_members in zip(rows.split(values), *(terms.batches(rows) for terms in members), strict=True):
            terms = add_features(of_members)
            outputs.append(fused_attention(terms.queries, terms.keys, v, terms.key_bias, seen, is_causal, self.dropout))
        return rows.join(outputs)

    def is_fused(self, members: list[Logits], values: torch.Tensor) -> bool:
        """Whether attention over features is at its best as fused calls, which want values of their width."""
        if values.device.type != "cpu" or is_static():
            return True
        is_half = values.dtype in (torch.bfloat16, torch.float16)
        is_shared = all(terms.queries.dim() == 3 for terms in members)
        # products of a few columns, as `factorized_random` has them, are slow in half precision
        width = sum(terms.queries.shape[-1] for terms in members)
        return (is_half or not is_shared) and width <= 1.25 * values.shape[-1]


class SynthesizerPreTrainedModel(BackbonePreTrainedModel):
    config_class = SynthesizerConfig
    config: SynthesizerConfig
    attention_class = SynthesizerAttention
    _can_record_outputs = {
        "hidden_states": BackboneLayer,
        "attentions": SynthesizerAttention,
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
    }


class SynthesizerModel(SynthesizerPreTrainedModel, BackboneModel):
    __doc__ = BackboneModel.__doc__


class SynthesizerForMaskedLM(SynthesizerPreTrainedModel, BackboneForMaskedLM):
    __doc__ = BackboneForMaskedLM.__doc__
    model_class = SynthesizerModel


class SynthesizerForCausalLM(SynthesizerPreTrainedModel, BackboneForCausalLM, GenerationMixin):
    __doc__ = BackboneForCausalLM.__doc__
    model_class = SynthesizerModel


class SynthesizerForSequenceClassification(SynthesizerPreTrainedModel, BackboneForSequenceClassification):
    __doc__ = BackboneForSequenceClassification.__doc__
    model_class = SynthesizerModel


class SynthesizerForTokenClassification(SynthesizerPreTrainedModel, BackboneForTokenClassification):
    __doc__ = BackboneForTokenClassification.__doc__
    model_class = SynthesizerModel


class SynthesizerForQuestionAnswering(SynthesizerPreTrainedModel, BackboneForQuestionAnswering):
    __doc__ = BackboneForQuestionAnswering.__doc__
    model_class = SynthesizerModel


class SynthesizerForMultipleChoice(SynthesizerPreTrainedModel, BackboneForMultipleChoice):
    __doc__ = BackboneForMultipleChoice.__doc__
    model_class = SynthesizerModel
