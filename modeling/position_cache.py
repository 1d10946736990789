"""
Cache layers for generation that are addressed by position: a row's first valid token is at 0, however it was padded.
A model puts them into an empty `DynamicCache` or `StaticCache`. Transformers' registry of layer types would share them
between the models of a process, also between checkpoints that bring code of different releases.
"""

from abc import abstractmethod

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, StaticLayer

from .rows import Rows


def write(buffer: torch.Tensor, states: torch.Tensor, rows: Rows) -> torch.Tensor:
    """
    Put states into a buffer, in place where no gradient can be wanted.

    Args:
        buffer: (B, H, positions, w).
        states: (B, H, L, w), those of masked tokens behind the last valid one, where later ones will overwrite them.
        rows: the rows of the new tokens.

    Returns:
        The buffer, or with gradients a new one.
    """
    states = states.to(buffer.dtype)
    # queries may want a gradient where keys do not, and it needs the keys as they were
    differentiable = torch.is_grad_enabled()
    if rows.start is not None:
        stop = rows.start + states.shape[2]
        if differentiable:
            return buffer.slice_scatter(states, 2, rows.start, stop)
        buffer[:, :, rows.start : stop] = states
        return buffer
    index = rows.new_positions()[:, None, :, None].expand_as(states)
    return buffer.scatter(2, index, states) if differentiable else buffer.scatter_(2, index, states)


class PositionLayerMixin(CacheLayerMixin):
    """
    The common part of the dynamic and the static layer. `states` names the tensors that hold a state of every position,
    (B, H, positions, w); keys have width 0 where the attention does not use them.
    """

    states: tuple[str, ...] = ("keys", "values")
    # in a cache's first layer: the (batch, columns) mask that came with the states, `None` if it hid nothing, and how
    # many columns of it are known: those of a traced graph are not
    mask: torch.Tensor | None = None
    known: int = 0
    is_croppable = True
    # the widths of the states are known from the first call only
    supports_early_init = False
    device: torch.device

    @abstractmethod
    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        """Make room for `end` positions of states such as these."""

    @abstractmethod
    def advance(self, num_tokens: int) -> None:
        """Count new tokens, or, where there are fewer than none, forget the last ones."""

    @property
    def batched(self) -> tuple[str, ...]:
        """Names of all tensors whose first dimension is the batch."""
        return *self.states, "mask"

    def check_mask(self, mask: torch.Tensor | None, past: int, end: int) -> None:
        """
        Check that the (batch, `end`) mask, `None` if it hides nothing, says of the first `past` columns what was said
        when they came. The states of valid tokens stand side by side, so that another mask cannot bring others back.
        """
        given, stop = self.mask if mask is None else mask, min(past, self.known)
        if given is not None:
            now, then = (
                torch.ones_like(given[:, :stop]) if x is None else x[:, :stop].to(given.device)
                for x in (mask, self.mask)
            )
            if not torch.equal(now, then):
                row, column = (now != then).nonzero()[0].tolist()
                new, old = ("valid", "masked") if now[row, column] else ("masked", "valid")
                raise ValueError(
                    f"attention_mask says that column {column} of row {row} is {new}, but past_key_values was filled "
                    f"with it {old}: give the same mask again, with a column more for each new token (None is all ones)"
                )
        self.mask, self.known = mask, end

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, rows: Rows, **more: torch.Tensor):
        """
        Args:
            key_states, value_states: (B, H, L, w) of the new tokens.
            rows: their rows.
            more: those of the further `states`, where a layer has some.

        Returns:
            Keys of all positions, (B, H, `rows.end` or more, w), and a tuple of the values and the further states.
        """
        new_states = {"keys": key_states, "values": value_states} | more
        self.prepare(new_states, rows.end)
        for name, states in new_states.items():
            setattr(self, name, write(getattr(self, name), states, rows))
        # columns of padding count, as in the attention mask
        self.advance(rows.shape[1])
        keys, *others = [getattr(self, name) for name in self.states]
        return keys, tuple(others)

    def map(self, function) -> None:
        """Replace every tensor that there is by a function of it."""
        for name in self.batched:
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, `-tokens_to_remove` of them; their states stay until others are written there."""
        if not -int(self.get_seq_length()) <= tokens_to_remove <= 0:
            raise ValueError(
                f"crop({tokens_to_remove}): give minus the number of tokens to remove from the end, at most "
                f"{int(self.get_seq_length())} here"
            )
        self.advance(tokens_to_remove)
        self.known = min(self.known, int(self.get_seq_length()))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.map(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.map(lambda tensor: tensor[indices])

    def offload(self) -> None:
        self.move("cpu")

    def prefetch(self) -> None:
        # an offloaded cache fetches the next layer before that has begun
        if self.is_initialized:
            self.move(self.device)

    def move(self, device) -> None:
        """Move what grows with the length, and not the little that the next call reads before it."""
        if self.is_initialized:
            for name in self.states:
                setattr(self, name, getattr(self, name).to(device, non_blocking=True))


class PositionLayer(PositionLayerMixin, DynamicLayer):
    """Grows as tokens come: by a thirty-second at a time, so that a token costs no copy of those before it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.length = 0
        self.is_shared = False

    def __copy__(self):
        """A layer with the same tensors; each of the two copies them before it writes into them."""
        twin = object.__new__(type(self))
        self.is_shared = True
        twin.__dict__.update(self.__dict__)
        return twin

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = value_states.dtype, value_states.device
        self.is_initialized = True

    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(new_states["keys"], new_states["values"])
        if self.is_shared:
            self.map(torch.clone)
            self.is_shared = False
        for name, states in new_states.items():
            buffer = getattr(self, name)
            if buffer is None:
                buffer = states[:, :, :0]
            if buffer.shape[2] < end:
                # exact for a prompt, generous for what follows it
                size = end + end // 32 + 16 if self.length else end
                buffer = F.pad(buffer, (0, 0, 0, size - buffer.shape[2]))
            setattr(self, name, buffer)

    def advance(self, num_tokens: int) -> None:
        self.length += num_tokens

    def get_seq_length(self) -> int:
        return self.length

    def reset(self) -> None:
        self.length = self.known = 0
        self.is_initialized = False
        for name in self.batched:
            setattr(self, name, None)


class StaticPositionLayer(PositionLayerMixin, StaticLayer):
    """Has its tensors of full length from the first call on, and keeps them, as `torch.compile` wants it."""

    def prepare(self, new_states: dict[str, torch.Tensor], end: int) -> None:
        if not self.is_initialized:
            self.lazy_initialization(new_states["keys"], new_states["values"])
        if end > self.max_cache_len:
            raise ValueError(f"max_cache_len={self.max_cache_len} is too short for {end} tokens")

    def advance(self, num_tokens: int) -> None:
        self.cumulative_length.add_(num_tokens)

    def reset(self) -> None:
        self.known = 0
        if self.is_initialized:
            self.cumulative_length.zero_()
            self.map(torch.Tensor.zero_)


def with_own_layers(
    cache: Cache, own: tuple[type[PositionLayerMixin], type[PositionLayerMixin]], num_layers: int
) -> Cache:
    """
    The cache, its empty layers of Transformers replaced by a model's own.

    Args:
        cache: one given to the model, or a new one.
        own: the classes of a dynamic layer and of a static one.
        num_layers: number of layers of the model.

    Raises:
        ValueError: for a cache that another model has filled.
    """
    layers = getattr(cache, "layers", [])
    if not layers and getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        layers = [DynamicLayer() for _ in range(num_layers)]
        cache.layer_class_to_replicate = None
    if any(type(layer) not in own for layer in layers):
        cache.layers = layers = [own_layer(layer, *own) for layer in layers]
    if len(layers) != num_layers or any(type(layer) not in own for layer in layers):
        raise ValueError(
            f"past_key_values={cache!r} is not a cache of this model: make it with DynamicCache(config=model.config) "
            "or StaticCache(config=model.config, max_cache_len=...), and let this model fill it. PEFT's prefix tuning, "
            "which fills it by itself, is not supported: use LoRA or prompt tuning"
        )
    return cache


def own_layer(
    layer: CacheLayerMixin, dynamic: type[PositionLayerMixin], static: type[PositionLayerMixin]
) -> CacheLayerMixin:
    """A layer of these classes in place of an empty one of Transformers; any other layer as it is."""
    if layer.is_initialized and int(layer.get_seq_length()) > 0:
        return layer
    if type(layer) is StaticLayer:
        return static(max_cache_len=layer.max_cache_len)
    return dynamic() if type(layer) is DynamicLayer else layer
