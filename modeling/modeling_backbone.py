"""The backbone that the families share: embeddings, layers, initialisation and the base model."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, StaticLayer
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_backbone import BackboneConfig
from .left_alignment import LeftAlignment
from .position_cache import NewTokens, PositionLayer, PositionLayerMixin, StaticPositionLayer

logger = logging.get_logger(__name__)


def sinusoidal_positions(position_ids: torch.Tensor, hidden_size: int) -> torch.Tensor:
    """(..., L) positions -> (..., L, d) sines and cosines (Vaswani et al., arXiv 1706.03762, section 3.5), float32."""
    frequency = torch.arange(0, hidden_size, 2, device=position_ids.device, dtype=torch.float32)
    angle = position_ids[..., None].float() * 10000.0 ** (-frequency / hidden_size)  # (..., L, ceil(d / 2))
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :hidden_size]


def check_range(name: str, ids: torch.Tensor | None, field: str, size: int) -> None:
    """
    Raise a `ValueError` that names an id which an embedding of `size` rows has not. An accelerator, which would have to
    be waited for, and a traced graph are not asked: there the embedding itself fails.
    """
    if ids is None or ids.device.type != "cpu" or not ids.numel():
        return
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    for extreme in ids.aminmax():
        if not 0 <= extreme < size:
            raise ValueError(f"{name} holds {extreme}, but {field}={size}: ids lie in 0 to {size - 1}")


def check_no_types(token_type_ids: torch.Tensor) -> None:
    """Raise a `ValueError` for types other than 0; an accelerator and a traced graph assert it instead."""
    fault = (
        "token_type_ids holds types other than 0, but type_vocab_size=0: set it in the configuration, or call the "
        "tokenizer with return_token_type_ids=False"
    )
    if token_type_ids.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        torch._assert_async((token_type_ids == 0).all(), fault)
    elif token_type_ids.any():
        raise ValueError(fault)


class BackboneEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings, as the configuration has them, then norm and dropout."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        if config.type_vocab_size:
            self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.embedding_norm else nn.Identity()
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, L) ids or (B, L, d) embeddings, (1 or B, L) positions, (B, L) types or `None` for type 0 -> (B, L, d)."""
        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if self.config.position_embedding_type == "learned":
            hidden_states = hidden_states + self.position_embeddings(position_ids)
        elif self.config.position_embedding_type == "sinusoidal":
            positions = sinusoidal_positions(position_ids, self.config.hidden_size)
            hidden_states = hidden_states + positions.to(hidden_states.dtype)
        if self.config.type_vocab_size:
            types = torch.zeros_like(position_ids) if token_type_ids is None else token_type_ids
            hidden_states = hidden_states + self.token_type_embeddings(types)
        return self.dropout(self.norm(hidden_states))


class BackboneFeedForward(nn.Module):
    """d -> `intermediate_size` -> d with one activation, position by position."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.input = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.output(self.activation(self.input(hidden_states)))


class BackboneLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each with a residual and a norm before (GPT-2) or after it (BERT)."""

    def __init__(self, config: BackboneConfig, attention: nn.Module):
        super().__init__()
        self.norm_first = config.norm_first
        self.attention = attention
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = BackboneFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        if self.norm_first:
            attended, _ = self.attention(self.attention_norm(hidden_states), **kwargs)
            hidden_states = hidden_states + self.dropout(attended)
            return hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))
        attended, _ = self.attention(hidden_states, **kwargs)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.feed_forward_norm(hidden_states + self.dropout(self.feed_forward(hidden_states)))


class BackbonePreTrainedModel(PreTrainedModel):
    """
    What every model of a family is. A family's own subclass sets `config_class`, `attention_class` (a module of a
    configuration and a layer index, from (B, L, d) to the pair of (B, L, d) and the weights or `None`), where its cache
    holds more than keys and values `cache_layers` (the class of a dynamic layer and of a static one) and, beside
    `hidden_states`, what of its attention `_can_record_outputs`: `output_attentions` asks for all of it. A module with
    tensors of its own initialises them in `initialize_parameters(std)`, with the functions of
    `transformers.initialization`.

    Raises:
        ValueError: for a configuration of another family, or one whose fields do not fit each other.
    """

    config_class: type[BackboneConfig]
    config: BackboneConfig
    base_model_prefix = "model"
    attention_class: type[nn.Module]
    cache_layers: tuple[type[PositionLayerMixin], type[PositionLayerMixin]] = (PositionLayer, StaticPositionLayer)
    supports_gradient_checkpointing = True
    # not the embeddings: fully sharded, they share a unit with the head that they are tied to
    _no_split_modules = ["BackboneLayer"]
    _supports_sdpa = True
    _can_compile_fullgraph = True

    def __init__(self, config: BackboneConfig, *inputs, **kwargs):
        own = self.config_class
        if own.export_code is not None and not isinstance(config, own):
            # made by remote code, perhaps of another release, it could not save the source files of this model
            if config.model_type != own.model_type:
                raise ValueError(f"config={type(config).__name__} must be a {own.__name__} for {type(self).__name__}")
            implementation = config._attn_implementation
            config = own.from_dict(config.to_dict(), attn_implementation=implementation)  # type: ignore[assignment]
        config.validate_architecture()
        super().__init__(config, *inputs, **kwargs)

    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        initialize_parameters = getattr(module, "initialize_parameters", None)
        if initialize_parameters is not None:
            initialize_parameters(self.config.initializer_range)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        # every attention reads the configuration at each call; Transformers would guess it from the source
        return True

    @staticmethod
    def create_masks_for_generate(attention_mask: torch.Tensor | None, past_key_values: Cache, **kwargs):
        """`generate` asks for the mask of a static cache: (batch, length), with columns for tokens to come."""
        if attention_mask is None:
            return None
        missing = past_key_values.get_max_length() - attention_mask.shape[1]
        return nn.functional.pad(attention_mask, (0, missing), value=1)

    def save_pretrained(self, save_directory, is_main_process: bool = True, *args, **kwargs):
        """Save the model with its source files; those of a Trainer's `run/checkpoint-5` are put into `run` too."""
        # names of weights that were renamed as they were loaded are not restored
        kwargs = {"save_original_format": False} | kwargs
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        run, slash, name = str(save_directory).replace("\\", "/").rstrip("/").rpartition("/")
        if is_main_process and name.startswith("checkpoint-") and name.removeprefix("checkpoint-").isdigit():
            # a Trainer that pushes during training copies weights and config.json from there to `run`, and pushes that
            if self.config.export_code is None:
                custom_object_save(self, f"{run}{slash}" or ".")
            else:
                self.config.export_code(self.config.model_type, f"{run}{slash}" or ".")

    def resize_max_position_embeddings(self, max_position_embeddings: int) -> None:
        """
        Grow or shrink every tensor that is tied to the maximal length, in place.

        What was learned of the positions that stay is kept; what is new is initialised as at construction. The resized
        tensors are new parameters: make the optimizer afterwards. The model's configuration changes in place; another
        model made from the same object should have had a copy. Set the tokenizer's `model_max_length` too.

        Args:
            max_position_embeddings: the new maximal length N.

        Raises:
            ValueError: if it is smaller than 1.
        """
        config = self.config.resized(max_position_embeddings)
        fresh = type(self)(config)
        for name, module in self.named_modules():
            new_module = fresh.get_submodule(name)
            for tensors, new_tensors in (
                (module._parameters, new_module._parameters),
                (module._buffers, new_module._buffers),
            ):
                for key, old in tensors.items():
                    if old is None or old.shape == new_tensors[key].shape:
                        continue
                    new = new_tensors[key].data.to(old)
                    kept = tuple(slice(min(sizes)) for sizes in zip(old.shape, new.shape, strict=True))
                    new[kept] = old.data[kept]
                    tensors[key] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
            if isinstance(module, nn.Embedding):
                module.num_embeddings = module.weight.shape[0]
        for field in config.length_fields(max_position_embeddings):
            setattr(self.config, field, getattr(config, field))

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Transformers' name for `resize_max_position_embeddings`."""
        self.resize_max_position_embeddings(new_num_position_embeddings)


class BackboneModel(BackbonePreTrainedModel):
    """
    The base model of a family, bidirectional or causal (`config.is_causal`), without a head.

    Args:
        config: the family's configuration.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__(config)
        self.embeddings = BackboneEmbeddings(config)
        self.layers = nn.ModuleList(
            BackboneLayer(config, self.attention_class(config, layer_idx))
            for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm_first else nn.Identity()
        if config.position_embedding_type == "rope":
            self.rotary_embeddings = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def get_position_embeddings(self) -> nn.Embedding:
        """The learned position embeddings; an `AttributeError` where `position_embedding_type` is another."""
        return self.embeddings.position_embeddings

    @merge_with_config_defaults
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        r"""
        Args:
            input_ids: (batch, length) token ids. Either these or `inputs_embeds`.
            attention_mask: (batch, length), 1 at valid tokens, 0 at padding to the left, to the right or inside; with
                a cache (batch, past + length).
            position_ids: (batch, length) or (1, length): where position embeddings and rotations are read; by default
                a row's first valid token is at 0. Synthesised weights and blocks always count from that token.
            token_type_ids: (batch, length) token types, all 0 where the configuration's `type_vocab_size` is 0.
            inputs_embeds: (batch, length, hidden_size) in place of the word embeddings.
            past_key_values: a `DynamicCache` or `StaticCache` made with `config=model.config`, or returned before, that
                holds the tokens before these. Causal models only.
            use_cache: return a cache; a causal model does unless `config.use_cache` is false.

        Returns:
            `last_hidden_state` (batch, length, hidden_size), `past_key_values`, and, on request, `hidden_states` (a
            tuple of `num_hidden_layers + 1`) and, with `attn_implementation="eager"`, `attentions` (a tuple of
            (batch, heads, length, past + length), one a layer). `output_attentions` also asks for whatever else the
            family records, which stays in the frame where each row begins with its first valid token.

        Raises:
            ValueError: for input that the configuration does not admit, the maximal length above all.
        """
        self._check_inputs(input_ids, inputs_embeds, position_ids, token_type_ids)
        if input_ids is not None and past_key_values is None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        if kwargs.get("output_attentions", self.config.output_attentions):
            if self.config._attn_implementation != "eager" and not torch.compiler.is_compiling():
                logger.warning_once(
                    f"attn_implementation={self.config._attn_implementation!r} builds no attention weights to return: "
                    "load the model with 'eager'"
                )
            kwargs |= {f"output_{name}": True for name in self._can_record_outputs if name != "hidden_states"}
        tokens = inputs_embeds if input_ids is None else input_ids
        past_key_values = self._prepare_cache(past_key_values, use_cache)
        past_length, end = self._cached_lengths(past_key_values, tokens.shape[1])
        attention_mask = self._check_mask(attention_mask, tokens, past_key_values, end)
        alignment = LeftAlignment(attention_mask, tokens, past_length, end)
        outputs = self.encode(
            alignment.align(input_ids),
            attention_mask=alignment.mask,
            position_ids=alignment.align(position_ids),
            token_type_ids=alignment.align(token_type_ids),
            inputs_embeds=alignment.align(inputs_embeds),
            past_key_values=past_key_values,
            new_tokens=alignment.new_tokens,
            return_dict=True,
            **kwargs,
        )
        outputs["last_hidden_state"] = alignment.restore(outputs["last_hidden_state"])
        if outputs.get("hidden_states") is not None:
            outputs["hidden_states"] = tuple(alignment.restore(states) for states in outputs["hidden_states"])
        if outputs.get("attentions") is not None:
            outputs["attentions"] = tuple(alignment.restore_weights(weights) for weights in outputs["attentions"])
        return outputs

    @capture_outputs
    def encode(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        past_key_values: Cache | None,
        new_tokens: NewTokens,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """`forward` for rows whose first valid token is at position 0, with a boolean mask or `None`."""
        if position_ids is None:
            position_ids = new_tokens.positions
        hidden_states = self.embeddings(input_ids, inputs_embeds, position_ids, token_type_ids)
        position_embeddings = None
        if self.config.position_embedding_type == "rope":
            position_embeddings = self.rotary_embeddings(hidden_states, position_ids)
        # self-assisted generation drafts with the first layers
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=attention_mask,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                new_tokens=new_tokens,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _prepare_cache(self, past_key_values: Cache | None, use_cache: bool | None) -> Cache | None:
        """The cache to use: the one given, a new one, or none."""
        if past_key_values is None:
            return self._with_own_layers(DynamicCache()) if use_cache and self.config.is_causal else None
        if not self.config.is_causal:
            raise ValueError(
                "past_key_values was given, but is_causal=False: this model sees later tokens too. PEFT's prefix "
                "tuning, which gives it, is not supported: use LoRA or prompt tuning"
            )
        if self.gradient_checkpointing and self.training:
            raise ValueError(
                "past_key_values was given, but activation checkpointing would fill it twice: switch it off"
            )
        return self._with_own_layers(past_key_values)

    def _with_own_layers(self, cache: Cache) -> Cache:
        """The cache, whose layers become this model's own if they are empty ones of Transformers."""
        layers = getattr(cache, "layers", [])
        if not layers and getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
            layers = [DynamicLayer() for _ in range(self.config.num_hidden_layers)]
            cache.layer_class_to_replicate = None
        if any(type(layer) not in self.cache_layers for layer in layers):
            cache.layers = layers = [self._own_layer(layer) for layer in layers]
        if len(layers) != self.config.num_hidden_layers or any(type(x) not in self.cache_layers for x in layers):
            raise ValueError(
                f"past_key_values={cache!r} is no cache of this model: make it with DynamicCache(config=model.config) "
                "or StaticCache(config=model.config, max_cache_len=...), and let this model fill it. PEFT's prefix "
                "tuning, which fills it by itself, is not supported: use LoRA or prompt tuning"
            )
        return cache

    def _own_layer(self, layer: CacheLayerMixin) -> CacheLayerMixin:
        """One of `cache_layers` in place of an empty layer of Transformers; any other layer as it is."""
        if layer.is_initialized and int(layer.get_seq_length()) > 0:
            return layer
        dynamic, static = self.cache_layers
        if type(layer) is StaticLayer:
            return static(max_cache_len=layer.max_cache_len)
        return dynamic() if type(layer) is DynamicLayer else layer

    def _cached_lengths(self, past_key_values: Cache | None, length: int) -> tuple[int | torch.Tensor, int]:
        """How many tokens are in the cache, and how many positions there will be with `length` more."""
        if past_key_values is None:
            return 0, length
        past_length = past_key_values.get_seq_length()
        if isinstance(past_length, torch.Tensor):
            if torch.compiler.is_compiling():
                return past_length, min(past_key_values.get_max_length(), self.config.max_position_embeddings)
            past_length = int(past_length)
        if past_length + length > self.config.max_position_embeddings:
            raise ValueError(
                f"{length} tokens after the {past_length} in past_key_values are more than "
                f"max_position_embeddings={self.config.max_position_embeddings}"
            )
        return past_length, past_length + length

    def _check_inputs(self, input_ids, inputs_embeds, position_ids, token_type_ids):
        config = self.config
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if input_ids is not None and input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}, but must be (batch, length)")
        if inputs_embeds is not None and (inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != config.hidden_size):
            raise ValueError(
                f"inputs_embeds has shape {tuple(inputs_embeds.shape)}, but must be (batch, length, "
                f"hidden_size={config.hidden_size})"
            )
        shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        if shape[1] < 1 or shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"the input has {shape[1]} tokens, but this model takes 1 to "
                f"max_position_embeddings={config.max_position_embeddings}: truncate it (truncation=True does, if the "
                "tokenizer's model_max_length is that number too), or call resize_max_position_embeddings"
            )
        if position_ids is not None and position_ids.shape not in (shape, (1, shape[1])):
            raise ValueError(
                f"position_ids has shape {tuple(position_ids.shape)}, but must be {tuple(shape)} or (1, {shape[1]})"
            )
        if token_type_ids is not None and not config.type_vocab_size:
            check_no_types(token_type_ids)
        check_range("input_ids", input_ids, "vocab_size", config.vocab_size)
        if config.type_vocab_size:
            check_range("token_type_ids", token_type_ids, "type_vocab_size", config.type_vocab_size)
        if config.position_embedding_type == "learned":
            check_range("position_ids", position_ids, "max_position_embeddings", config.max_position_embeddings)

    @staticmethod
    def _check_mask(attention_mask, tokens, past_key_values, end):
        """The mask, of `end` columns where there is a cache: a static one admits a mask of its own length."""
        if attention_mask is None:
            return None
        if attention_mask.is_floating_point() and not torch.compiler.is_compiling() and (attention_mask < 0).any():
            raise ValueError(
                "attention_mask holds negative numbers: it must be 1 at valid tokens and 0 at padding, and not what is "
                "added to logits"
            )
        given, shape = tuple(attention_mask.shape), (tokens.shape[0], end)
        if past_key_values is not None and given == (shape[0], past_key_values.get_max_length()):
            attention_mask = attention_mask[:, :end]
        elif given != shape:
            raise ValueError(
                f"attention_mask has shape {given}, but must have one value for each token, those in the cache too, "
                f"(batch, length) = {shape}"
            )
        return attention_mask
