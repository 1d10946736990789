"""The Sinkhorn family (Tay et al., arXiv 2002.11296): its sort nets, its attention, and its models."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.utils.output_capturing import OutputRecorder

from ..configuration.configuration_sinkhorn import SinkhornConfig
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
from .sinkhorn_attention import Options, literal_sinkhorn_attention, sinkhorn_attention
from .sinkhorn_cache import SortedBlocksLayer, SortedBlocksLayerMixin, StaticSortedBlocksLayer
from .sinkhorn_decoding import block_runs, decode_blocks
from .sinkhorn_sort import (
    Blocks,
    causal_sinkhorn,
    causal_sums,
    column_residual,
    gumbel_noise,
    pool_blocks,
    scaled_causal_sums,
    sinkhorn,
)
from .softmax_attention import fused_attention, literal_attention, seen_attention, seen_softmax


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
        self, states: torch.Tensor, blocks: Blocks | None = None, block: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """
        Args:
            states: the tokens, (1, T, d), in their `blocks`; or (B, n, d) `causal_sums` for one `block` of each row.
            blocks: the blocks of all rows.
            block: (B,), i.

        Returns:
            For all blocks S, (R, H, n, n) in at least float32, and its `column_residual`, (R, H), `None` in causal
            models. For one block of each row, last, row i of S, (B, H, n).
        """
        if block is not None:
            return None, None, self.causal_row(states, block)
        config, filled, mask = self.config, blocks.fill(states), blocks.row_mask
        if config.is_causal:
            matrices = self.matrices(self.pooled_sums(causal_sums(filled, blocks, config.block_pooling)), None)
            return matrices if mask is None else matrices * mask[:, None, :, None], None, None
        matrices = self.matrices(pool_blocks(filled, blocks, config.block_pooling), mask)
        return matrices, column_residual(matrices, mask), None

    def pooled_sums(self, sums: torch.Tensor) -> torch.Tensor:
        """`causal_sums`, (R, n, d), -> the pooled blocks."""
        return scaled_causal_sums(sums, self.config.block_size, self.config.block_pooling)

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

    def matrices(self, pooled: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(R, n, d) and (R, n), true at blocks that take part, or `None` -> (R, H, n, n)."""
        config, logits = self.config, self.logits(pooled, pooled)
        if config.is_causal:
            matrices = causal_sinkhorn(logits, config.sinkhorn_iterations if config.is_balanced else 0)
        else:
            matrices = sinkhorn(logits, None if mask is None else mask[:, None], config.sinkhorn_iterations)
        return matrices.expand(-1, config.num_attention_heads, -1, -1)

    def causal_row(self, sums: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """Row i of the causal `matrices`, from (B, n, d) `causal_sums`; i is `block`, (B,) -> (B, H, n)."""
        pooled, index = self.pooled_sums(sums), block[:, None, None]
        if self.config.is_balanced:
            return self.matrices(pooled, None).take_along_dim(index[..., None], 2)[:, :, 0]
        seen = torch.arange(pooled.shape[1], device=pooled.device) < index  # (B, 1, n)
        row = seen_softmax(self.logits(pooled.take_along_dim(index, 1), pooled), seen[:, :, None])
        return row[:, :, 0].expand(-1, self.config.num_attention_heads, -1)


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
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)

    @property
    def options(self) -> Options:
        config = self.config
        return Options(config.block_size, config.is_causal, config.combine, config.sortcut_blocks, self.dropout)

    def project(self, hidden_states, position_embeddings):
        """-> the tokens and the queries, (1, T, d) and (1, H, T, dh), and keys and values."""
        queries, keys, values = (
            self.project_heads(projection, hidden_states) for projection in (self.query, self.key, self.value)
        )
        if position_embeddings is not None:
            queries, keys = apply_rotary_pos_emb(queries, keys, *position_embeddings)
        return (hidden_states, queries * self.scaling), keys, values

    def attend(self, inputs, keys, values, rows):
        (hidden_states, queries), options = inputs, self.options
        blocks = Blocks.of(rows, options.block_size, options.is_causal)
        matrices = None if self.sort is None else self.sort(hidden_states, blocks)[0]
        outputs = sinkhorn_attention(queries, keys, values, matrices, rows, blocks, options)
        if self.config.mix_dot_product:
            is_causal = options.is_causal
            seen = None if rows.mask is None or is_causal else rows.mask[:, None, None]
            parts = zip(*(rows.split(x) for x in (queries, keys, values)), strict=True)
            full = [fused_attention(*part, None, seen, is_causal, options.dropout) for part in parts]
            outputs = outputs + rows.join(full)
        return outputs

    def attend_literally(self, inputs, keys, values, rows):
        (hidden_states, queries), options = inputs, self.options
        blocks = Blocks.of(rows, options.block_size, options.is_causal)
        matrices = None if self.sort is None else self.sort(hidden_states, blocks)[0]
        queries, keys, values = (rows.to_rows(x.transpose(1, 2)).transpose(1, 2) for x in (queries, keys, values))
        mask = rows.row_mask()
        outputs, weights = literal_sinkhorn_attention(queries, keys, values, matrices, mask, options)
        if self.config.mix_dot_product:
            logits = queries @ keys.transpose(-1, -2)
            _, full_weights = literal_attention(logits, values, mask, options.is_causal, options.dropout)
            weights = weights + full_weights
            outputs = weights @ values
        return outputs, weights

    def sort_row(self, sums: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """(B, n, d) `causal_sums` and i, (B,) -> row i of S, (B, H, n)."""
        return self.sort(sums, block=block)[2]

    def cached_states(self, hidden_states):
        return {"inputs": (hidden_states[..., :0] if self.sort is None else hidden_states)[:, None]}

    def start_cache(self, hidden_states, rows, layer):
        if self.sort is not None:
            config = self.config
            blocks = Blocks.of(rows, config.block_size, is_causal=True)
            sums = causal_sums(blocks.fill(hidden_states), blocks, config.block_pooling)
            layer.start(rows.in_order(sums), config.block_size, config.num_blocks)

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
                    keys, values, all_inputs, run, self.sort_row, config.block_size, config.block_pooling
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
