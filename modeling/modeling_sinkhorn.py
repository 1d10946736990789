"""The Sinkhorn family (Tay et al., arXiv 2002.11296): its sort nets, its attention, and its models."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_sinkhorn import SinkhornConfig
from .dot_product_attention import literal_attention, masked_attention, seen_attention, seen_softmax, split_heads
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
from .sinkhorn_attention import (
    causal_pool_blocks,
    causal_sinkhorn,
    column_residual,
    gumbel_noise,
    literal_sinkhorn_attention,
    pool_blocks,
    scaled_sums,
    sinkhorn,
    sinkhorn_attention,
    to_blocks,
)
from .sinkhorn_cache import SortedBlock, block_counts, block_runs, decode, next_pooled, sort_past_blocks


def sort_heads(config: SinkhornConfig) -> int:
    """Sort matrices in a layer: one a head, or one for all."""
    return 1 if config.share_sort_net else config.num_attention_heads


class LinearSortNet(nn.Module):
    """R = x' W + b with N / b outputs, cut to the n blocks there are."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sort_heads(config), config.num_blocks, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(sort_heads(config), config.num_blocks))

    def initialize_parameters(self, std: float):
        init.normal_(self.weight, std=std)
        init.zeros_(self.bias)

    def forward(self, rows, columns):
        """Pooled blocks (B, r, d) and (B, n, d) -> (B, H, r, n)"""
        n = columns.shape[1]
        weight, bias = self.weight[:, :n].to(rows.dtype), self.bias[:, None, :n].to(rows.dtype)
        return rows[:, None] @ weight.transpose(-1, -2) + bias


class MLPSortNet(nn.Module):
    """R = relu(x' W1 + b1) W2 + b2 with N / b outputs, cut to the n blocks there are."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        heads, width = sort_heads(config), config.hidden_size // sort_heads(config)
        self.input_weight = nn.Parameter(torch.empty(heads, width, config.hidden_size))
        self.input_bias = nn.Parameter(torch.empty(heads, width))
        self.output_weight = nn.Parameter(torch.empty(heads, config.num_blocks, width))
        self.output_bias = nn.Parameter(torch.empty(heads, config.num_blocks))

    def initialize_parameters(self, std: float):
        for weight, bias in ((self.input_weight, self.input_bias), (self.output_weight, self.output_bias)):
            init.normal_(weight, std=std)
            init.zeros_(bias)

    def forward(self, rows, columns):
        """Pooled blocks (B, r, d) and (B, n, d) -> (B, H, r, n)"""
        n = columns.shape[1]
        tensors = (self.input_weight, self.input_bias, self.output_weight[:, :n], self.output_bias[:, :n])
        w1, b1, w2, b2 = (tensor.to(rows.dtype) for tensor in tensors)
        hidden = (rows[:, None] @ w1.transpose(-1, -2) + b1[:, None]).relu()  # (B, H, r, d / H)
        return hidden @ w2.transpose(-1, -2) + b2[:, None]


class BilinearSortNet(nn.Module):
    """R[i, j] = q(x'_i) . k(x'_j) / sqrt(w), free of the maximal length; w is the width of q and k."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        heads, width = sort_heads(config), config.hidden_size // sort_heads(config)
        self.scaling = width**-0.5
        self.query_weight = nn.Parameter(torch.empty(heads, width, config.hidden_size))
        self.key_weight = nn.Parameter(torch.empty(heads, width, config.hidden_size))

    def initialize_parameters(self, std: float):
        init.normal_(self.query_weight, std=std)
        init.normal_(self.key_weight, std=std)

    def forward(self, rows, columns):
        """Pooled blocks (B, r, d) and (B, n, d) -> (B, H, r, n)"""
        queries = rows[:, None] @ self.query_weight.to(rows.dtype).transpose(-1, -2)  # (B, H, r, w)
        keys = columns[:, None] @ self.key_weight.to(rows.dtype).transpose(-1, -2)  # (B, H, n, w)
        return queries @ keys.transpose(-1, -2) * self.scaling


SORT_NETS = {"linear": LinearSortNet, "mlp": MLPSortNet, "bilinear": BilinearSortNet}


class BlockSort(nn.Module):
    """The sort matrices S of a layer, from pooled blocks through the sort net to balancing."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.config = config
        self.net = SORT_NETS[config.sort_net](config)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        (B, L, d) and (B, L) or `None` -> (B, H, n, n) in at least float32, and its `column_residual`, `None` in causal
        models.
        """
        config = self.config
        pool = causal_pool_blocks if config.is_causal else pool_blocks
        pooled = pool(hidden_states, mask, config.block_size, config.block_pooling)  # (B, n, d)
        blocks = None if mask is None else to_blocks(mask, config.block_size, -1).any(-1)[:, None]  # (B, 1, n)
        matrices = self.matrices(pooled, blocks)
        return matrices, None if config.is_causal else column_residual(matrices, blocks)

    def logits(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Pooled blocks (B, r, d) and (B, n, d) -> (B, H, r, n), noise and temperature included."""
        # sums over many tokens would overflow half precision
        with torch.autocast(rows.device.type, enabled=False):
            logits = self.net(rows, columns)
        if self.training and self.config.gumbel_noise:
            logits = logits + gumbel_noise(logits)
        return logits / self.config.sinkhorn_temperature

    def matrices(self, pooled: torch.Tensor, blocks: torch.Tensor | None) -> torch.Tensor:
        """(B, n, d) and (B, 1, n), true at blocks that hold a valid token, or `None` -> (B, H, n, n)."""
        balance = causal_sinkhorn if self.config.is_causal else sinkhorn
        iterations = self.config.sinkhorn_iterations if self.config.is_balanced else 0
        matrices = balance(self.logits(pooled, pooled), blocks, iterations)
        return matrices.expand(-1, self.config.num_attention_heads, -1, -1)

    def row(self, pooled: torch.Tensor, blocks: torch.Tensor | None, block: torch.Tensor) -> torch.Tensor:
        """Row i of the causal `matrices`: i is `block`, (B,) -> (B, H, n)."""
        index = block[:, None, None]
        if self.config.is_balanced:
            return self.matrices(pooled, blocks).take_along_dim(index[..., None], 2)[:, :, 0]
        seen = torch.arange(pooled.shape[1], device=pooled.device) < index  # (B, 1, n)
        seen = seen if blocks is None else seen & blocks
        row = seen_softmax(self.logits(pooled.take_along_dim(index, 1), pooled), seen[:, :, None])
        return row[:, :, 0].expand(-1, self.config.num_attention_heads, -1)


class SinkhornAttention(nn.Module):
    """
    Multi-head attention to the own block of b tokens and to one that the sort brings in (section 3.2).

    Rotary positions turn queries and keys before the sort, so that a moved key keeps the angle of its own position.

    `attn_implementation="eager"` writes out the weights of all slots and returns the effective weights over the
    original tokens; `"sdpa"` is the fast form, and returns none.

    Raises:
        ValueError: for a configuration that no model can have, such as SortCut with `is_causal`.
    """

    def __init__(self, config: SinkhornConfig, layer_idx: int):
        super().__init__()
        # once more, because a causal language model makes its copy of the configuration causal
        config.validate_architecture()
        self.config = config
        self.layer_idx = layer_idx
        self.scaling = config.head_dim**-0.5
        self.sort = None if config.sort_net == "none" else BlockSort(config)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

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
            (B, L, d), and the effective weights (B, H, L, T) in the eager form.
        """
        heads = self.config.num_attention_heads
        queries, keys, values = (split_heads(x(hidden_states), heads) for x in (self.query, self.key, self.value))
        if position_embeddings is not None:
            queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        queries = queries * self.scaling  # (B, H, L, dh)
        new_mask = attention_mask if new_tokens is None else new_tokens.mask
        if new_mask is not None:
            padding = ~new_mask[:, None, :, None]
            keys, values = keys.masked_fill(padding, 0.0), values.masked_fill(padding, 0.0)
        weights = None
        if past_key_values is not None and new_tokens.start != 0:
            keys, values, inputs = self.cached(hidden_states, keys, values, past_key_values, new_tokens)
            outputs, weights = self.decode(queries, keys, values, inputs, attention_mask, past_key_values, new_tokens)
        else:
            if past_key_values is not None:
                self.cached(hidden_states, keys, values, past_key_values, new_tokens)
                self.begin(hidden_states, keys, attention_mask, past_key_values)
            matrices = None if self.sort is None else self.sort(hidden_states, attention_mask)[0]
            if self.config._attn_implementation == "eager":
                outputs, weights = self.eager(queries, keys, values, matrices, attention_mask)
            else:
                outputs = self.fast(queries, keys, values, matrices, attention_mask)
        return self.output(outputs.transpose(1, 2).flatten(2)), weights

    def cached(self, hidden_states, keys, values, past_key_values, new_tokens):
        """Put the new tokens into the cache: keys, values and inputs of all tokens, (B, H or 1, T, dh or d)."""
        inputs = hidden_states[..., :0] if self.sort is None else hidden_states
        if new_tokens.mask is not None:
            inputs = inputs.masked_fill(~new_tokens.mask[..., None], 0.0)
        keys, others = past_key_values.update(keys, values, self.layer_idx, new_tokens, inputs=inputs[:, None])
        return tuple(x[:, :, : new_tokens.end] for x in (keys, *others))

    def begin(self, hidden_states, keys, mask, past_key_values):
        """What a cache holds of the sort after its first tokens."""
        if self.sort is None:
            return
        config = self.config
        pooling = "first" if config.block_pooling == "first" else "sum"
        pooled = causal_pool_blocks(hidden_states, mask, config.block_size, pooling)[:, None]
        pooled = nn.functional.pad(pooled, (0, 0, 0, config.num_blocks - pooled.shape[2]))
        layer = past_key_values.layers[self.layer_idx]
        layer.keep(pooled, SortedBlock.unknown(keys, config.block_size, config.num_blocks))
        layer.block = None

    def decode(self, queries, keys, values, inputs, mask, past_key_values, new_tokens):
        """
        The rows of new tokens: queries (B, H, L, dh), keys and values (B, H, T, dh) and inputs (B, 1, T, d) of all ->
        (B, H, L, dh) and, in the eager form, the effective weights (B, H, L, T).
        """
        config, dropout = self.config, self.options[-1]
        need_weights = config._attn_implementation == "eager"
        layer = past_key_values.layers[self.layer_idx]
        outputs, weights = [], []
        for start, stop in block_runs(new_tokens, config.block_size):
            run = new_tokens.part(start, stop)
            sorted_block = self.sorted_block(keys, values, inputs, mask, layer, run)
            rows = queries[:, :, start:stop]
            own = decode(
                rows, keys, values, sorted_block, mask, run, config.block_size, config.combine, dropout, need_weights
            )
            if config.mix_dot_product:
                full = seen_attention(rows @ keys.transpose(-1, -2), values, run.seen(mask), dropout)
                own = own[0] + full[0], own[1] + full[1] if need_weights else None
            outputs.append(own[0])
            weights.append(own[1])
        return torch.cat(outputs, 2), torch.cat(weights, 2) if need_weights else None

    def sorted_block(self, keys, values, inputs, mask, layer, new_tokens):
        """What the sort brings to the block of the new tokens, kept in the cache's layer; `None` without a sort."""
        if self.sort is None:
            return None
        start, size = new_tokens.start, self.config.block_size
        # a block is known as long as its first token stays
        if start is not None and start % size and layer.block == start // size:
            return layer.sorted
        layer.block = None if start is None else start // size
        first = new_tokens.positions[:, 0].expand(keys.shape[0])
        block = first // size
        tensors = keys, values, inputs, layer.pooled, block
        tensors = tensors if mask is None else (*tensors, mask)
        if start is not None:
            pooled, *known = self.next_block(*tensors)
            layer.keep(pooled, SortedBlock(*known))
            return layer.sorted
        old = (layer.pooled, *layer.sorted)
        stale = (block != layer.sorted.block) | (first % size == 0)  # (B,)
        if torch.compiler.is_compiling():

            def work_out(stale, old, tensors):
                fresh = self.next_block(*tensors)
                pairs = zip(old, fresh, strict=True)
                return tuple(torch.where(stale.view(-1, *[1] * (x.dim() - 1)), y, x) for x, y in pairs)

            def leave(stale, old, tensors):
                return tuple(x.clone() for x in old)

            if torch.is_grad_enabled():
                known = work_out(stale, old, tensors)
            else:
                known = torch.cond(stale.any(), work_out, leave, (stale, old, tensors))
            layer.keep(known[0], SortedBlock(*known[1:]))
        elif stale.any():
            rows = stale.nonzero().flatten()
            fresh = self.next_block(*[x[rows] for x in tensors])
            pooled, *known = [x.index_copy(0, rows, y) for x, y in zip(old, fresh, strict=True)]
            layer.keep(pooled, SortedBlock(*known))
        return layer.sorted

    def next_block(self, keys, values, inputs, pooled, block, mask=None):
        """
        The pooled blocks with that of `block`, (B,), and what the sort brings to it: a tuple of `pooled` and the
        tensors of a `SortedBlock`.
        """
        config = self.config
        size, pooling = config.block_size, config.block_pooling
        latest = next_pooled(pooled, inputs, mask, block, size, pooling)
        pooled = pooled.scatter(2, block[:, None, None, None].expand_as(latest), latest)
        # no later block is needed, where that can be known
        n = config.num_blocks if torch.compiler.is_compiling() else int(block.max()) + 1
        candidates = scaled_sums(pooled[:, 0, :n], block_counts(mask, n, size, pooled), pooling)
        blocks = None
        if mask is not None:
            blocks = to_blocks(mask, size, -1).any(-1)[:, :n]
            blocks = nn.functional.pad(blocks, (0, n - blocks.shape[1]))
            # the block itself takes part, though it may begin with a hole
            blocks = blocks.scatter(1, block[:, None], True)[:, None]
        shares = self.sort.row(candidates, blocks, block)
        known = sort_past_blocks(shares, keys, values, mask, block, size)
        shares = nn.functional.pad(known.shares, (0, config.num_blocks - n))
        return pooled, *known._replace(shares=shares)

    @property
    def options(self) -> tuple:
        """What the attention over blocks takes beside its tensors."""
        config = self.config
        dropout = config.attention_dropout if self.training else 0.0
        return config.block_size, config.is_causal, config.combine, config.sortcut_blocks, dropout

    def eager(self, queries, keys, values, matrices, mask):
        """The paper, literally: (B, H, L, dh) each -> (B, H, L, dh) and the effective weights (B, H, L, L)."""
        outputs, weights = literal_sinkhorn_attention(queries, keys, values, matrices, mask, *self.options)
        if self.config.mix_dot_product:
            logits = queries @ keys.transpose(-1, -2)
            _, full_weights = literal_attention(logits, values, mask, self.config.is_causal, self.options[-1])
            weights = weights + full_weights
            outputs = weights @ values
        return outputs, weights

    def fast(self, queries, keys, values, matrices, mask):
        """The same without a tensor of size (L, L): (B, H, L, dh) each -> (B, H, L, dh)."""
        outputs = sinkhorn_attention(queries, keys, values, matrices, mask, *self.options)
        if self.config.mix_dot_product:
            full = masked_attention(queries, keys, values, None, mask, self.config.is_causal, self.options[-1])
            outputs = outputs + full
        return outputs


class SinkhornPreTrainedModel(BackbonePreTrainedModel):
    config_class = SinkhornConfig
    config: SinkhornConfig
    attention_class = SinkhornAttention
    _can_record_outputs = {
        "hidden_states": BackboneLayer,
        "attentions": SinkhornAttention,
        "sort_matrices": OutputRecorder(BlockSort),
        "sort_residuals": OutputRecorder(BlockSort, index=1),
    }


class SinkhornModel(SinkhornPreTrainedModel, BackboneModel):
    __doc__ = BackboneModel.__doc__


class SinkhornForMaskedLM(SinkhornPreTrainedModel, BackboneForMaskedLM):
    __doc__ = BackboneForMaskedLM.__doc__
    model_class = SinkhornModel


class SinkhornForCausalLM(SinkhornPreTrainedModel, BackboneForCausalLM, GenerationMixin):
    __doc__ = BackboneForCausalLM.__doc__
    model_class = SinkhornModel


class SinkhornForSequenceClassification(SinkhornPreTrainedModel, BackboneForSequenceClassification):
    __doc__ = BackboneForSequenceClassification.__doc__
    model_class = SinkhornModel


class SinkhornForTokenClassification(SinkhornPreTrainedModel, BackboneForTokenClassification):
    __doc__ = BackboneForTokenClassification.__doc__
    model_class = SinkhornModel


class SinkhornForQuestionAnswering(SinkhornPreTrainedModel, BackboneForQuestionAnswering):
    __doc__ = BackboneForQuestionAnswering.__doc__
    model_class = SinkhornModel


class SinkhornForMultipleChoice(SinkhornPreTrainedModel, BackboneForMultipleChoice):
    __doc__ = BackboneForMultipleChoice.__doc__
    model_class = SinkhornModel
