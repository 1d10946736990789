"""The models that the families share: their common base class, and the base model without a head."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_backbone import BackboneConfig
from .backbone_attention import BackboneAttention
from .backbone_layers import BackboneEmbeddings, BackboneLayer
from .cross_attention import EncoderStates, encoder_states, with_cross_cache
from .input_checks import check_inputs, check_length, checked_mask, packed_lengths
from .position_cache import PositionLayer, PositionLayerMixin, StaticPositionLayer, with_own_layers
from .rows import Rows, is_static

logger = logging.get_logger(__name__)

# where the documents of packed input begin, as Transformers' collators say it
PACKING_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")


class BackbonePreTrainedModel(PreTrainedModel):
    """
    The base class of all models of a family. A family's own subclass sets `config_class`, `attention_class` (a
    `BackboneAttention`), where its cache holds more than keys and values `cache_layers` (the class of a dynamic layer
    and of a static one) and, beside `hidden_states`, which outputs of its attention `_can_record_outputs`:
    `output_attentions` asks for all of them. A module with tensors of its own initialises them in
    `initialize_parameters(std)`, with the functions of `transformers.initialization`.

    Raises:
        ValueError: for a configuration of another family, or one whose fields do not fit each other.
    """

    config_class: type[BackboneConfig]
    config: BackboneConfig
    base_model_prefix = "model"
    attention_class: type[BackboneAttention]
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
        # weights that two modules share stay shared
        resized: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for name, module in self.named_modules():
            new_module = fresh.get_submodule(name)
            for tensors, new_tensors in (
                (module._parameters, new_module._parameters),
                (module._buffers, new_module._buffers),
            ):
                for key, old in tensors.items():
                    if old is None or old.shape == new_tensors[key].shape:
                        continue
                    if id(old) in resized:
                        tensors[key] = resized[id(old)][1]
                        continue
                    new = new_tensors[key].data.to(old)
                    kept = tuple(slice(min(sizes)) for sizes in zip(old.shape, new.shape, strict=True))
                    new[kept] = old.data[kept]
                    tensors[key] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                    resized[id(old)] = old, tensors[key]
            if isinstance(module, nn.Embedding):
                module.num_embeddings = module.weight.shape[0]
        for field in config.length_fields(max_position_embeddings):
            setattr(self.config, field, getattr(config, field))

    def resize_position_embeddings(self, new_num_position_embeddings: int) -> None:
        """Transformers' name for `resize_max_position_embeddings`."""
        self.resize_max_position_embeddings(new_num_position_embeddings)


@dataclass
class BackboneOutput(BaseModelOutputWithPast):
    """With `keep_tokens`, `last_hidden_state` is that of the tokens only, and `rows` say where these belong."""

    rows: Rows | None = None


class BackboneModel(BackbonePreTrainedModel):
    """
    The base model of a family, bidirectional or causal (`config.is_causal`), without a head.

    Args:
        config: the family's configuration.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__(config)
        # the one that the base class may have converted
        config = self.config
        self.embeddings = BackboneEmbeddings(config)
        self.layers = nn.ModuleList(
            BackboneLayer(config, self.attention_class(config, layer_idx), layer_idx)
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
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        keep_tokens: bool = False,
        **kwargs,
    ) -> BackboneOutput:
        r"""
        A masked token is not there: positions, blocks and synthesised rows count the valid tokens of a row, wherever
        its padding lies, and nothing is computed for the others.

        In packed input documents follow one another; each is a row of its own. `cu_seq_lens_q` (and `cu_seq_lens_k`,
        `max_length_q`, `max_length_k`) or `seq_idx` say where those of a batch of one begin, or, without a mask and a
        cache, `position_ids` that restart: each is one more than the one before, or the first one of its row again.

        Args:
            input_ids: (batch, length) token ids. Either these or `inputs_embeds`.
            attention_mask: (batch, length), 1 at valid tokens, 0 at padding, wherever it lies; with a cache (batch,
                past + length).
            position_ids: (batch, length) or (1, length): where position embeddings and rotations are read; by default
                a row's first valid token is at 0. Synthesised weights and blocks always count from that token.
            token_type_ids: (batch, length) token types, all 0 where the configuration's `type_vocab_size` is 0.
            inputs_embeds: (batch, length, hidden_size) in place of the word embeddings.
            past_key_values: a `DynamicCache` or `StaticCache` made with `config=model.config`, or returned before, that
                holds the tokens before these. Causal models only.
            use_cache: return a cache; a causal model does unless `config.use_cache` is false.
            encoder_hidden_states: (batch, encoder length, `cross_attention_hidden_size` or hidden_size), what layers of
                a model with `add_cross_attention` attend to as well. The cache is then an `EncoderDecoderCache`.
            encoder_attention_mask: (batch, encoder length), 1 at the encoder's valid tokens, 0 at padding.
            keep_tokens: for heads: `last_hidden_state` holds the valid tokens only, (1, tokens, hidden_size) where any
                is masked, and `rows` says where they belong.

        Returns:
            `last_hidden_state` (batch, length, hidden_size), 0 at masked tokens, `past_key_values`, and, on request,
            `hidden_states` (a tuple of `num_hidden_layers + 1`) and, with `attn_implementation="eager"`, `attentions`
            (a tuple of (batch, heads, length, past + length), one a layer). `output_attentions` also asks for whatever
            else the family records, which is by rows: those of the batch, or the documents of packed input; with an
            encoder `cross_attentions`, (batch, heads, length, encoder length).

        Raises:
            ValueError: for input that the configuration does not admit, the maximal length above all.
        """
        check_inputs(self.config, input_ids, inputs_embeds, position_ids, token_type_ids)
        if input_ids is not None and past_key_values is None and not is_static():
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)
        if kwargs.get("output_attentions", self.config.output_attentions):
            if self.config._attn_implementation != "eager" and not torch.compiler.is_compiling():
                logger.warning_once(
                    f"attn_implementation={self.config._attn_implementation!r} builds no attention weights to return: "
                    "load the model with 'eager'"
                )
            kwargs |= {f"output_{name}": True for name in self._can_record_outputs if name != "hidden_states"}
        packing = {name: kwargs.pop(name, None) for name in PACKING_ARGUMENTS}
        tokens = input_ids if inputs_embeds is None else inputs_embeds
        cache: Any = past_key_values
        own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        rows, own = self._rows(tokens, attention_mask, position_ids, own, use_cache, packing)
        if not isinstance(cache, EncoderDecoderCache):
            cache = own if encoder_hidden_states is None else with_cross_cache(own)
        of_encoder = encoder_states(self.config, encoder_hidden_states, encoder_attention_mask, rows, cache)
        if rows.source is not None and input_ids is not None and self.embeddings.word_embeddings._forward_hooks:
            # a hook such as NEFTune's is to see the batch, and not its tokens in one row
            inputs_embeds, input_ids = self.embeddings.word_embeddings(input_ids), None
        outputs = self.encode(
            rows.gather(input_ids),
            position_ids=rows.own_positions() if position_ids is None else rows.gather(position_ids),
            token_type_ids=rows.gather(token_type_ids),
            inputs_embeds=rows.gather(inputs_embeds),
            past_key_values=own,
            rows=rows,
            encoder=of_encoder,
            return_dict=True,
            **kwargs,
        )
        if cache is not None:
            # around the one that the layers have filled
            outputs["past_key_values"] = cache
        for name in self._can_record_outputs:
            if outputs.get(name) is not None:
                restore = {
                    "hidden_states": rows.scatter,
                    "attentions": rows.scatter_weights,
                    "cross_attentions": lambda x: rows.scatter_cross(x, of_encoder.rows),
                }.get(name, rows.in_order)
                outputs[name] = tuple(None if x is None else restore(x) for x in outputs[name])
        if keep_tokens:
            outputs["rows"] = rows
        else:
            outputs["last_hidden_state"] = rows.scatter(outputs["last_hidden_state"])
        return outputs

    @capture_outputs
    def encode(
        self,
        input_ids: torch.Tensor | None,
        position_ids: torch.Tensor,
        token_type_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        past_key_values: Cache | None,
        rows: Rows,
        encoder: EncoderStates | None = None,
        **kwargs,
    ) -> BackboneOutput:
        """`forward` for the tokens of the rows, (1, T) or (B, L): ids, positions and types, or embeddings."""
        hidden_states = self.embeddings(input_ids, inputs_embeds, position_ids, token_type_ids)
        position_embeddings = None
        if self.config.position_embedding_type == "rope":
            position_embeddings = self.rotary_embeddings(hidden_states, position_ids)
        # self-assisted generation drafts with the first layers
        # the encoder's tokens want gradients, which activation checkpointing gives to what is passed by position
        for layer in self.layers[: self.config.num_hidden_layers]:
            # not named past_key_values: in training mode with activation checkpointing Transformers would drop it
            hidden_states = layer(
                hidden_states,
                rows,
                *(encoder or ()),
                position_embeddings=position_embeddings,
                cache=past_key_values,
                **kwargs,
            )
        return BackboneOutput(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _rows(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        packing: dict,
    ) -> tuple[Rows, Cache | None]:
        """The rows of (batch, length, ...) input, and the cache to use."""
        config, device = self.config, tokens.device
        batch, length = tokens.shape[:2]
        shape = batch, length
        past: int | torch.Tensor = 0
        end = length
        if past_key_values is not None:
            if not config.is_causal:
                raise ValueError(
                    "past_key_values was given, but is_causal=False: this model sees later tokens too. PEFT's prefix "
                    "tuning, which gives it, is not supported: use LoRA or prompt tuning"
                )
            past_key_values = with_own_layers(past_key_values, self.cache_layers, config.num_hidden_layers)
            past = past_key_values.get_seq_length()
            if isinstance(past, torch.Tensor) and torch.compiler.is_compiling():
                end = min(past_key_values.get_max_length(), config.max_position_embeddings)
            else:
                past = int(past)
                check_length(config, length, past)
                end = past + length
        mask = checked_mask(attention_mask, (batch, end), past_key_values)
        lengths = packed_lengths(shape, mask, position_ids, past_key_values, **packing)
        if mask is not None and not is_static() and mask.all():
            mask = None
        if not isinstance(past, int) or past:
            rows = Rows.after(past, shape, mask, end, device)
        elif lengths is not None:
            rows = Rows.packed(shape, lengths, device)
        elif mask is not None:
            rows = Rows.padded(mask)
        else:
            rows = Rows.whole(shape, device)
        check_length(config, rows.longest)
        recomputes = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        if past_key_values is not None and recomputes:
            raise ValueError(
                "past_key_values was given, but activation checkpointing would fill it twice: switch it off"
            )
        if past_key_values is None and use_cache and config.is_causal and not (recomputes or rows.is_packed):
            past_key_values = with_own_layers(DynamicCache(), self.cache_layers, config.num_hidden_layers)
        if past_key_values is not None and not is_static():
            first: Any = past_key_values.layers[0]
            first.check_mask(mask, int(past), end)
        return rows, past_key_values
