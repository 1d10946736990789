"""The Sinkhorn family (Tay et al., arXiv 2002.11296): its sort nets, its attention, and its models."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_sinkhorn import SinkhornConfig
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
from .sinkhorn_attention import Options, literal_sinkhorn_attention, sinkhorn_attention, to_blocks
from .sinkhorn_cache import SortedBlocksLayer, SortedBlocksLayerMixin, StaticSortedBlocksLayer
from .sinkhorn_choice import Choice, choose
from .sinkhorn_decoding import block_runs, decode_blocks
from .sinkhorn_sort import (
    Blocks,
    causal_sums,
    column_residual,
    gumbel_noise,
    log_causal_sinkhorn,
    log_sinkhorn,
    masked,
    pool_blocks,
    scaled_causal_sums,
)
from .softmax_attention import (
    fused_attention,
    literal_attention,
    merge_heads,
    precise,
    seen_attention,
    split_heads,
)


def sort_heads(config: SinkhornConfig) -> int:
    """How many heads have sort matrices of their own: all, or one for all."""
    return 1 if config.share_sort_net else config.num_attention_heads


def sort_matrices(config: SinkhornConfig) -> int:
    """Sort matrices that the net of a layer gives, one for each of a head's sorted blocks."""
    return sort_heads(config) * config.sorted_blocks


class LinearSortNet(nn.Module):
    """R = x' W + b with N / b outputs, cut to the n blocks there are."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(sort_matrices(config), config.num_blocks, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(sort_matrices(config), config.num_blocks))

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
        heads, width = sort_matrices(config), config.hidden_size // sort_heads(config)
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
        heads, width = sort_matrices(config), config.hidden_size // sort_heads(config)
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


class PooledSortNet(nn.Module):
    """R[i, j] = the mean query of block i times the mean key of block j: without parameters."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.heads = sort_heads(config)

    def initialize_parameters(self, std: float):
        """There are none."""

    def forward(self, rows, columns):
        """Mean queries (B, r, d), scaled already, and keys (B, n, d) -> (B, H, r, n)"""
        queries, keys = (split_heads(x, self.heads) for x in (rows, columns))
        return queries @ keys.transpose(-1, -2)


SORT_NETS = {"linear": LinearSortNet, "mlp": MLPSortNet, "bilinear": BilinearSortNet, "pooled": PooledSortNet}


class BlockSort(nn.Module):
    """The sort matrices S of a layer, from pooled blocks through the sort net to balancing."""

    def __init__(self, config: SinkhornConfig):
        super().__init__()
        self.config = config
        self.net = SORT_NETS[config.sort_net](config)

    @property
    def pooling(self) -> str:
        """How the states become one vector a block. The first query of a block is what a causal choice may know."""
        if self.config.sort_net == "pooled":
            return "first" if self.config.is_causal else "mean"
        return self.config.block_pooling

    def forward(
        self,
        states: torch.Tensor,
        blocks: Blocks | None = None,
        block: torch.Tensor | None = None,
        keys: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, Any]:
        """
        Args:
            states: the tokens, (1, T, d), in their `blocks`; or (B, n, d) `causal_sums` for one `block` of each row.
            blocks: the blocks of all rows.
            block: (B,), i.
            keys: for the net `pooled`, (1, T, d) or, for one block, the means of blocks, (B, n, d).

        Returns:
            For all blocks S, (R, H m, n, n) in at least float32, m matrices of each head; its `column_residual`,
            (R, H m), `None` in causal models; and the columns of the entries that are not 0 (`choose`). For one block
            of each row, last, row i of S, (B, H m, 1, n), and its columns.
        """
        if block is not None:
            return None, None, self.causal_row(states, block, keys)
        config, filled, mask = self.config, blocks.fill(states), blocks.row_mask
        if config.is_causal:
            pooled, mask = self.pooled_sums(causal_sums(filled, blocks, self.pooling)), None
        else:
            pooled = pool_blocks(filled, blocks, self.pooling)
        columns = pooled if keys is None else pool_blocks(blocks.fill(keys), blocks, "mean")
        matrices, index = self.matrices(pooled, columns, mask)
        if not config.is_causal:
            return matrices, column_residual(matrices, mask), index
        mask = blocks.row_mask
        return matrices if mask is None else matrices * mask[:, None, :, None], None, index

    def pooled_sums(self, sums: torch.Tensor) -> torch.Tensor:
        """`causal_sums`, (R, n, d), -> the pooled blocks."""
        return scaled_causal_sums(sums, self.config.block_size, self.pooling)

    def logits(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Pooled blocks (R, r, d) and (R, n, d) -> (R, H, r, n), noise and temperature included."""
        # sums over many tokens would overflow half precision
        with torch.autocast(rows.device.type, enabled=False):
            logits = self.net(rows, columns)
        if logits.shape[-1] != columns.shape[1]:
            raise ValueError(
                f"block_size={self.config.block_size} gives {columns.shape[1]} blocks, but the sort net was made for "
                f"{logits.shape[-1]}: make the model with that block_size"
            )
        if self.training and self.config.gumbel_noise:
            logits = logits + gumbel_noise(logits)
        return logits / self.config.sinkhorn_temperature

    def matrices(
        self, pooled: torch.Tensor, columns: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(R, n, d) twice and (R, n), true at blocks that take part, or `None` -> (R, H m, n, n) and its columns."""
        config, logits = self.config, self.logits(pooled, columns)
        if config.is_causal:
            return self.choose(*log_causal_sinkhorn(logits, config.sinkhorn_iterations if config.is_balanced else 0))
        return self.choose(*log_sinkhorn(logits, None if mask is None else mask[:, None], config.sinkhorn_iterations))

    def choose(self, log_matrix: torch.Tensor, pairs: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`choose` as configured, with matrices for all heads where they share them."""
        config = self.config
        matrices, index = (
            None if x is None else x.unflatten(1, (-1, config.sorted_blocks))
            for x in choose(log_matrix, pairs, config.num_chosen, config.sort_hard)
        )
        matrices, index = (
            None if x is None else x.expand(-1, config.num_attention_heads, -1, -1, -1).flatten(1, 2)
            for x in (matrices, index)
        )
        return matrices, index

    def causal_row(
        self, sums: torch.Tensor, block: torch.Tensor, keys: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Row i of the causal `matrices`, from (B, n, d) `causal_sums`; i is `block`, (B,) -> (B, H m, 1, n)."""
        pooled, row = self.pooled_sums(sums), block[:, None, None]
        columns = pooled if keys is None else keys
        if self.config.is_balanced:
            matrices, index = self.matrices(pooled, columns, None)
            matrices, index = (None if x is None else x.take_along_dim(row[..., None], 2) for x in (matrices, index))
            return matrices, index
        seen = (torch.arange(pooled.shape[1], device=pooled.device) < row)[:, :, None]  # (B, 1, 1, n)
        logits = precise(self.logits(pooled.take_along_dim(row, 1), columns))
        return self.choose(masked(logits, seen), seen)


class SinkhornAttention(BackboneAttention):
    """
    Multi-head attention to the own block of b tokens and to one that the sort brings in (section 3.2).

    Rotary positions turn queries and keys before the sort, so that a moved key keeps the angle of its own position.
    `attentions` are the effective weights over the original tokens, the sort multiplied in.
    """

    def __init__(self, config: SinkhornConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.scaling = config.head_dim**-0.5
        self.sort = None if config.sort_net == "none" else BlockSort(config)
        self.is_pooled = config.sort_net == "pooled"
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)

    @property
    def options(self) -> Options:
        config = self.config
        return Options(config.block_size, config.is_causal, config.combine, config.sortcut_blocks, self.dropout)

    def project(self, hidden_states, position_embeddings):
        """-> what the sort reads and the queries, (1, T, d) and (1, H, T, dh), and keys and values."""
        queries, keys, values = (
            self.project_heads(projection, hidden_states) for projection in (self.query, self.key, self.value)
        )
        if position_embeddings is not None:
            queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        queries = queries * self.scaling
        return (merge_heads(queries) if self.is_pooled else hidden_states, queries), keys, values

    def sort_blocks(self, states, keys, blocks):
        """S, (R, H m, n, n), and the columns that are not 0; no matrices without a sort."""
        if self.sort is None:
            return None, None
        matrices, _, index = self.sort(states, blocks, keys=merge_heads(keys) if self.is_pooled else None)
        return matrices, index

    def attend(self, inputs, keys, values, rows):
        (states, queries), options = inputs, self.options
        blocks = Blocks.of(rows, options.block_size, options.is_causal)
        matrices, index = self.sort_blocks(states, keys, blocks)
        choice = None if matrices is None else Choice.of(matrices, index, self.config.num_attention_heads)
        outputs = sinkhorn_attention(queries, keys, values, choice, rows, blocks, options)
        if self.config.mix_dot_product:
            is_causal = options.is_causal
            seen = None if rows.mask is None or is_causal else rows.mask[:, None, None]
            parts = zip(*(rows.split(x) for x in (queries, keys, values)), strict=True)
            full = [fused_attention(*part, None, seen, is_causal, options.dropout) for part in parts]
            outputs = outputs + rows.join(full)
        return outputs

    def attend_literally(self, inputs, keys, values, rows):
        (states, queries), options = inputs, self.options
        matrices, _ = self.sort_blocks(states, keys, Blocks.of(rows, options.block_size, options.is_causal))
        queries, keys, values = (rows.to_rows(x.transpose(1, 2)).transpose(1, 2) for x in (queries, keys, values))
        mask = rows.row_mask()
        outputs, weights = literal_sinkhorn_attention(queries, keys, values, matrices, mask, options)
        if self.config.mix_dot_product:
            logits = queries @ keys.transpose(-1, -2)
            _, full_weights = literal_attention(logits, values, mask, options.is_causal, options.dropout)
            weights = weights + full_weights
            outputs = weights @ values
        return outputs, weights

    def sort_row(self, sums: torch.Tensor, block: torch.Tensor, keys: torch.Tensor):
        """(B, n, d) `causal_sums`, i, (B,), and (B, H, T, dh) -> row i of S, (B, H m, 1, n), and its columns."""
        means = None
        if self.is_pooled:
            size, n = self.config.block_size, sums.shape[1]
            means = merge_heads(to_blocks(keys[:, :, : n * size], size, -2).mean(-2, dtype=sums.dtype))
            means = F.pad(means, (0, 0, 0, n - means.shape[1]))
        return self.sort(sums, block=block, keys=means)[2]

    def cached_states(self, inputs):
        return {"inputs": (inputs[0][..., :0] if self.sort is None else inputs[0])[:, None]}

    def start_cache(self, inputs, rows, layer):
        if self.sort is not None:
            config = self.config
            blocks = Blocks.of(rows, config.block_size, is_causal=True)
            sums = causal_sums(blocks.fill(inputs[0]), blocks, self.sort.pooling)
            layer.start(rows.in_order(sums), config.sorted_blocks, config.block_size, config.num_blocks)

    def attend_cached(self, inputs, states, rows, layer: SortedBlocksLayerMixin):
        keys, values, all_inputs = states
        config, options, (queries,) = self.config, self.options, rows.split(inputs[1])
        need_weights = config._attn_implementation == "eager"
        outputs, weights = [], []
        for start, stop in block_runs(rows, config.block_size):
            run, q = rows.part(start, stop), queries[:, :, start:stop]
            sorted_block = None
            if self.sort is not None:
                sorted_block = layer.sorted_block(
                    keys, values, all_inputs, run, self.sort_row, config.block_size, self.sort.pooling
                )
            own = decode_blocks(q, keys, values, sorted_block, run, options, need_weights)
            if config.mix_dot_product:
                full = seen_attention(q @ keys.transpose(-1, -2), values, run.seen_positions(), options.dropout)
                own = own[0] + full[0], own[1] + full[1] if need_weights else None
            outputs.append(own[0])
            weights.append(own[1])
        return torch.cat(outputs, 2), torch.cat(weights, 2) if need_weights else None


class SinkhornPreTrainedModel(BackbonePreTrainedModel):
    config_class = SinkhornConfig
    config: SinkhornConfig
    attention_class = SinkhornAttention
    cache_layers = (SortedBlocksLayer, StaticSortedBlocksLayer)
    _can_record_outputs = {
        "hidden_states": BackboneLayer,
        "attentions": SinkhornAttention,
        "cross_attentions": OutputRecorder(CrossAttention, index=1),
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
