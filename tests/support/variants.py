"""The tiny models that the tests share."""

import torch

from synkhorn import FAMILIES, SinkhornConfig, SynthesizerConfig

SYNTHESIZERS = ["dot_product", "dense", "random", "fixed_random", "factorized_random", "factorized_dense"]
MIXTURES = [
    ["random", "dot_product"],
    ["dense", "dot_product"],
    ["random", "dense"],
    ["factorized_random", "dense", "dot_product"],
    ["random", "fixed_random"],
    ["factorized_dense", "dot_product"],
    SYNTHESIZERS,
]
VARIANTS = [[name] for name in SYNTHESIZERS] + MIXTURES


def name_of(variant: list[str] | dict) -> str:
    if isinstance(variant, dict):
        return "-".join(f"{field}={value}" for field, value in variant.items()) or "default"
    return "+".join(variant)


# odd sizes: width 18, 3 heads, 13 positions, 40 tokens
TINY = {
    "vocab_size": 40,
    "hidden_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "max_position_embeddings": 13,
    "hidden_dropout": 0.0,
    # large weights, so that no term of the logits is lost in the rounding
    "initializer_range": 0.3,
    "eos_token_id": 2,
}
SINKHORN_VARIANTS = [
    {},
    {"block_pooling": "sum"},
    {"sort_net": "mlp", "share_sort_net": True},
    {"sort_net": "bilinear", "block_pooling": "mean"},
    {"sort_net": "none"},
    {"block_pooling": "first", "combine": "sum"},
    {"combine": "logits", "block_pooling": "mean"},
    {"combine": "logits", "sort_net": "none"},
    {"sort_net": "bilinear", "combine": "sum", "mix_dot_product": True, "share_sort_net": True},
    {"sort_net": "mlp", "causal_balancing": "sinkhorn", "block_pooling": "first"},
    {"causal_balancing": "sinkhorn", "combine": "logits", "mix_dot_product": True, "sinkhorn_iterations": 2},
    {"sort_net": "pooled"},
    {"sort_net": "pooled", "sort_top_k": 2, "causal_balancing": "sinkhorn", "share_sort_net": True},
    {"sort_top_k": 2, "sorted_blocks": 2},
    {"sort_net": "bilinear", "sort_top_k": 2, "combine": "sum", "sorted_blocks": 3, "share_sort_net": True},
    {"sort_hard": True, "sort_net": "mlp", "combine": "logits"},
    {"sortcut_blocks": 2},
    {"sortcut_blocks": 2, "sort_top_k": 2},
    {"sortcut_blocks": 1, "sort_net": "bilinear", "mix_dot_product": True},
]


def tiny_config(synthesizers: list[str] | None = None, **fields) -> SynthesizerConfig:
    """A tiny Synthesizer."""
    own = {"synthesizers": ["dense"] if synthesizers is None else synthesizers, "rank": 3, "synthesizer_hidden_size": 5}
    return SynthesizerConfig(**TINY | own | fields)


def tiny_sinkhorn_config(**fields) -> SinkhornConfig:
    """A tiny Sinkhorn model: blocks of 4, the last of them of 1."""
    return SinkhornConfig(**TINY | {"block_size": 4} | fields)


def randomize(model: torch.nn.Module, seed: int = 0, scale: float = 0.4) -> torch.nn.Module:
    """Give every parameter and every buffer that is saved a random value, biases and mixture weights too."""
    generator = torch.Generator().manual_seed(seed)
    saved = model.state_dict()
    tensors = dict(model.named_parameters()) | {name: x for name, x in model.named_buffers() if name in saved}
    # a sort net that reads vectors of norm 64 gets small weights, or its matrices hold nothing but 0 and 1
    is_long = getattr(getattr(model, "config", None), "block_pooling", "") == "normed_sum"
    with torch.no_grad():
        for name, tensor in tensors.items():
            own = scale / 16 if is_long and "net." in name else scale
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * own)
    return model


def config_of(variant: list[str] | dict, **fields) -> SynthesizerConfig | SinkhornConfig:
    """Tiny, of the family that a variant is of: the members of a Synthesizer, or fields of Sinkhorn."""
    return tiny_config(variant, **fields) if isinstance(variant, list) else tiny_sinkhorn_config(**variant | fields)


def model_of(config, head: str = "Model", seed: int = 0, scale: float = 0.4) -> torch.nn.Module:
    """A model with random values everywhere, in evaluation."""
    return randomize(FAMILIES[config.model_type].model_class(head)(config), seed, scale).eval()


def attention_of(config, seed: int = 0, scale: float = 0.4) -> torch.nn.Module:
    """The attention of one layer, in float64 and in evaluation."""
    attention_class = FAMILIES[config.model_type].model_class("Model").attention_class
    return randomize(attention_class(config, 0).double(), seed, scale).eval()


# every causal variant of both families, by a name, and one of each kind of cache and logits
CAUSAL_VARIANTS = {f"synthesizer-{name_of(variant)}": variant for variant in VARIANTS} | {
    f"sinkhorn-{name_of(variant)}": variant for variant in SINKHORN_VARIANTS if "sortcut_blocks" not in variant
}
SOME_CAUSAL = [
    "synthesizer-dense",
    "synthesizer-random+dot_product",
    f"synthesizer-{name_of(SYNTHESIZERS)}",
    "sinkhorn-default",
    "sinkhorn-sort_net=none",
    f"sinkhorn-{name_of(SINKHORN_VARIANTS[10])}",
    "sinkhorn-sort_top_k=2-sorted_blocks=2",
]


def causal_model(name: str, **fields) -> torch.nn.Module:
    """A tiny causal language model of 29 positions in evaluation: seven blocks of 4 and one token."""
    fields = {"max_position_embeddings": 29, "eos_token_id": None} | fields
    return model_of(config_of(CAUSAL_VARIANTS[name], **fields), "ForCausalLM")


def random_ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 40, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding(batch: int, length: int, side: str) -> torch.Tensor | None:
    """(batch, length) mask whose rows have different numbers of valid tokens on one side, or a hole inside."""
    if side == "none":
        return None
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        pads = min(2 * row + 1, length - 1)
        if side == "left":
            mask[row, :pads] = 0
        elif side == "right":
            mask[row, length - pads :] = 0
        else:
            mask[row, length // 2 : length // 2 + min(row, length - 1 - length // 2)] = 0
    return mask
