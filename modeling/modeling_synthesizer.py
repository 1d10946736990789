"""The Synthesizer family (Tay et al., arXiv 2005.00743): its members, their mixture as attention, and its models."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ..configuration.configuration_synthesizer import SynthesizerConfig
from .dot_product_attention import literal_attention, seen_attention, split_heads
from .modeling_backbone import BackboneLayer, BackboneModel, BackbonePreTrainedModel
from .modeling_heads import (
    BackboneForCausalLM,
    BackboneForMaskedLM,
    BackboneForMultipleChoice,
    BackboneForQuestionAnswering,
    BackboneForSequenceClassification,
    BackboneForTokenClassification,
)
from .position_cache import NewTokens
from .synthesizer_attention import feature_attention, shared_attention, shared_weights, tiled_attention
from .synthesizer_logits import Logits, add_logits, expand_factors


def rows_at(weight: torch.Tensor, new_tokens: NewTokens) -> torch.Tensor:
    """(H, N, w) -> (1 or B, H, L, w), the rows of new tokens."""
    if new_tokens.start is not None:
        return weight[None, :, new_tokens.start : new_tokens.start + new_tokens.positions.shape[1]]
    return weight[:, new_tokens.positions].transpose(0, 1)


class DotProduct(nn.Module):
    """S = Q K^T / sqrt(dh), the Transformer's own attention, rotated where the positions are rotary."""

    def __init__(self, config: SynthesizerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scaling = config.head_dim**-0.5
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)

    def queries_and_keys(self, hidden_states, position_embeddings):
        queries = split_heads(self.query(hidden_states), self.num_heads)  # (B, H, L, dh)
        keys = split_heads(self.key(hidden_states), self.num_heads)
        if position_embeddings is not None:
            queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        return queries, keys

    def forward(self, hidden_states, queries_and_keys, new_tokens):
        """Queries (B, H, L, dh) and keys (B, H, T, dh) -> (B, H, L, T), the rows of S of the new tokens."""
        queries, keys = queries_and_keys
        return queries @ keys.transpose(-1, -2) * self.scaling

    def terms(self, hidden_states, queries_and_keys) -> Logits:
        queries, keys = queries_and_keys
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

    def forward(self, hidden_states, queries_and_keys, new_tokens):
        """(B, L, d) -> (B, H, L, T)"""
        hidden = split_heads(self.input(hidden_states).relu(), self.num_heads)  # (B, H, L, s)
        weight, bias = self.weight[:, : new_tokens.end], self.bias[:, None, : new_tokens.end]
        # one product for the batch, which reads the weight once
        return torch.einsum("bhls,hts->bhlt", hidden, weight) + bias

    def terms(self, hidden_states, queries_and_keys) -> Logits:
        length = hidden_states.shape[1]
        hidden = split_heads(self.input(hidden_states).relu(), self.num_heads)
        return Logits(queries=hidden, keys=self.weight[None, :, :length], key_bias=self.bias[None, :, :length])


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

    def forward(self, hidden_states, queries_and_keys, new_tokens):
        """(B, L, d) -> (1 or B, H, L, T)"""
        return rows_at(self.weight[..., : new_tokens.end], new_tokens)

    def terms(self, hidden_states, queries_and_keys) -> Logits:
        length = hidden_states.shape[1]
        return Logits(matrix=self.weight[:, :length, :length])


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

    def forward(self, hidden_states, queries_and_keys, new_tokens):
        """(B, L, d) -> (1 or B, H, L, T)"""
        queries = rows_at(self.query_weight, new_tokens)
        return torch.einsum("bhlk,htk->bhlt", queries, self.key_weight[:, : new_tokens.end])

    def terms(self, hidden_states, queries_and_keys) -> Logits:
        length = hidden_states.shape[1]
        return Logits(queries=self.query_weight[None, :, :length], keys=self.key_weight[None, :, :length])


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

    def terms(self, hidden_states, queries_and_keys) -> Logits:
        hidden = split_heads(self.input(hidden_states).relu(), self.num_heads)  # (B, H, L, s)
        slow = hidden @ self.slow_weight + self.slow_bias  # (B, H, L, a)
        fast = hidden @ self.fast_weight + self.fast_bias  # (B, H, L, b)
        return Logits(slow=slow, fast=fast)

    def forward(self, hidden_states, queries_and_keys, new_tokens):
        """(B, L, d) -> (B, H, L, T)"""
        terms = self.terms(hidden_states, None)
        return expand_factors(terms.slow, terms.fast, new_tokens.end)


MEMBERS = {
    "dot_product": DotProduct,
    "dense": Dense,
    "random": Random,
    "fixed_random": FixedRandom,
    "factorized_random": FactorizedRandom,
    "factorized_dense": FactorizedDense,
}


class SynthesizerAttention(nn.Module):
    """
    Multi-head attention with synthesised logits: `Y = softmax(mask(sum_i alpha_i S_i)) V` for the members S_i that the
    configuration names (section 3.3, mixtures: weighted before the one softmax).

    `attn_implementation="eager"` writes S out and returns the weights; `"sdpa"` takes the fast form that serves the
    members, and returns none: attention over features (`dot_product`, `dense`, `factorized_random`), weights that the
    batch shares (`random`, `fixed_random`), and blocks of rows for everything else.
    """

    mixture: nn.Parameter | None

    def __init__(self, config: SynthesizerConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.members = nn.ModuleDict({name: MEMBERS[name](config) for name in config.synthesizers})
        self.only_features = set(config.synthesizers) <= {"dot_product", "dense", "factorized_random"}
        self.is_shared = set(config.synthesizers) <= {"random", "fixed_random", "factorized_random"}
        self.only_matrices = set(config.synthesizers) <= {"random", "fixed_random"}
        weighted = len(self.members) > 1 and config.mixture_weighting == "softmax"
        mixture = nn.Parameter(torch.empty(config.num_attention_heads, len(self.members))) if weighted else None
        self.register_parameter("mixture", mixture)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)
        self._cached_weights: tuple = (None, None)

    def initialize_parameters(self, std: float):
        if self.mixture is not None:
            init.zeros_(self.mixture)

    def train(self, mode: bool = True):
        self._cached_weights = (None, None)
        return super().train(mode)

    def __getstate__(self):
        return self.__dict__ | {"_cached_weights": (None, None)}

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        new_tokens: NewTokens | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: (B, L, d), the first valid token of each row at position 0, or with a cache the next ones.
            attention_mask: (B, T), true at valid tokens, those in the cache too, or `None`.
            position_embeddings: cosines and sines of the rotary embedding, (1 or B, L, dh) each, or `None`.
            past_key_values: the cache of the model, or `None`.
            new_tokens: where the tokens stand in it.

        Returns:
            (B, L, d), and the weights (B, H, L, T) in the eager form.
        """
        values = split_heads(self.value(hidden_states), self.config.num_attention_heads)  # (B, H, L, dh)
        queries = keys = values[..., :0]
        if "dot_product" in self.members:
            queries, keys = self.members["dot_product"].queries_and_keys(hidden_states, position_embeddings)
        if past_key_values is not None:
            # keys only where a member compares with them
            keys, values = past_key_values.update(keys, values, self.layer_idx, new_tokens)
            keys, values = keys[:, :, : new_tokens.end], values[:, :, : new_tokens.end]  # (B, H, T, dh)
        inputs = hidden_states, (queries, keys), values, attention_mask
        weights = None
        if past_key_values is not None and new_tokens.start != 0:
            outputs, weights = self.decode(*inputs, new_tokens)
        elif self.config._attn_implementation == "eager":
            outputs, weights = self.eager(*inputs)
        else:
            outputs = self.fast(*inputs)
        return self.output(outputs.transpose(1, 2).flatten(2)), weights

    def eager(self, hidden_states, queries_and_keys, values, mask):
        """The paper, literally: (B, L, d) and (B, H, L, dh) -> (B, H, L, dh) and the weights (B, H, L, L)."""
        logits = self.logits(hidden_states, queries_and_keys, NewTokens.all(hidden_states))
        return literal_attention(logits, values, mask, self.config.is_causal, self.dropout)

    def decode(self, hidden_states, queries_and_keys, values, mask, new_tokens):
        """The same for new tokens and a cache: (B, L, d) and (B, H, T, dh) -> (B, H, L, dh), weights (B, H, L, T)."""
        logits = self.logits(hidden_states, queries_and_keys, new_tokens)
        return seen_attention(logits, values, new_tokens.seen(mask), self.dropout)

    def fast(self, hidden_states, queries_and_keys, values, mask):
        """As `eager`, by the form that serves the members: (B, L, d) and (B, H, L, dh) -> (B, H, L, dh)."""
        is_causal = self.config.is_causal
        if self.dropout and not self.only_features:
            # weights that the batch shares, or that are recomputed, cannot be dropped for each row of the batch
            return self.eager(hidden_states, queries_and_keys, values, mask)[0]
        if self.keeps_weights:
            return shared_attention(self.shared_weights(hidden_states, values.dtype), values, mask, is_causal)
        terms = self.mixed_terms(hidden_states, queries_and_keys)
        if self.only_features and (self.dropout or self.is_fused(terms, values)):
            return feature_attention(terms, values, mask, is_causal, self.dropout)
        attention = shared_attention if self.is_shared else tiled_attention
        return attention(terms, values, mask, is_causal)

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights of an evaluation serve the next one too."""
        compiling = torch.compiler.is_compiling()
        return self.only_matrices and not compiling and not (self.training or torch.is_grad_enabled())

    def is_fused(self, terms: Logits, values: torch.Tensor) -> bool:
        """Whether attention over features is at its best as one fused call, which wants values of their width."""
        if values.device.type != "cpu" or torch.compiler.is_compiling():
            return True
        # products of a few columns, as `factorized_random` has them, are slow in half precision
        is_half = values.dtype in (torch.bfloat16, torch.float16)
        return (is_half or not self.is_shared) and terms.queries.shape[-1] <= 1.25 * values.shape[-1]

    def logits(self, hidden_states, queries_and_keys, new_tokens):
        """The rows of S of new tokens, (B, L, d) -> (1 or B, H, L, T): the sum of the members', alpha multiplied in."""
        logits = [member(hidden_states, queries_and_keys, new_tokens) for member in self.members.values()]
        if self.mixture is not None:
            alphas = self.mixture.softmax(-1).unbind(-1)  # (H,) each
            logits = [alpha[:, None, None] * member for alpha, member in zip(alphas, logits, strict=True)]
        return sum(logits[1:], logits[0])

    @property
    def dropout(self) -> float:
        return self.config.attention_dropout if self.training else 0.0

    def mixed_terms(self, hidden_states, queries_and_keys) -> Logits:
        """The terms of all members as those of one: features concatenated, matrices added, alpha multiplied in."""
        members = [member.terms(hidden_states, queries_and_keys) for member in self.members.values()]
        if self.mixture is not None:
            alphas = self.mixture.softmax(-1).unbind(-1)
            members = [member.scaled(alpha) for alpha, member in zip(alphas, members, strict=True)]
        return add_logits(members)

    def shared_weights(self, hidden_states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """
        (H, L, L), kept from call to call in evaluation without gradients, for as long as nothing changes. What PyTorch
        does not count as a change, writing through `.data`, is seen after the next `train()` or `eval()`.
        """
        sources = [member.weight for member in self.members.values()]
        sources += [] if self.mixture is None else [self.mixture]
        versions = [None if x.is_inference() else (x.data_ptr(), x._version, x.dtype, x.device) for x in sources]
        key = None if None in versions else (hidden_states.shape[1], self.config.is_causal, dtype, *versions)
        if key is not None and key == self._cached_weights[0]:
            return self._cached_weights[1]
        matrix = self.mixed_terms(hidden_states, None).whole_matrix
        weights = shared_weights(matrix, self.config.is_causal, dtype)
        self._cached_weights = (None, None) if key is None else (key, weights)
        return weights


class SynthesizerPreTrainedModel(BackbonePreTrainedModel):
    config_class = SynthesizerConfig
    config: SynthesizerConfig
    attention_class = SynthesizerAttention
    _can_record_outputs = {"hidden_states": BackboneLayer, "attentions": SynthesizerAttention}


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
