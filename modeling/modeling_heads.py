"""The heads, for any family: a family's class adds its own base and `model_class`."""

import copy
from typing import TypeVar

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import logging
from transformers.utils.generic import ModelOutput, can_return_tuple

from ..configuration.configuration_backbone import BackboneConfig
from .head_layers import ClassificationHead, MaskedLMHead, check_pooling, classifier_dropout, pool, token_labels
from .modeling_backbone import BackboneModel, BackboneOutput, BackbonePreTrainedModel

logger = logging.get_logger(__name__)

ModelOutputs = TypeVar("ModelOutputs", bound=ModelOutput)
# the default that a text-generation pipeline passes to `generate`, where it cannot be told from a user's wish
PIPELINE_NEW_TOKENS = 256


def with_recorded(head_outputs: ModelOutputs, outputs: ModelOutput) -> ModelOutputs:
    """A head's outputs and what its base model recorded: hidden states, attentions, and the family's own."""
    for name, recorded in outputs.items():
        if name not in ("last_hidden_state", "rows"):
            head_outputs[name] = recorded
    return head_outputs


def at_tokens(logits: torch.Tensor, positions: torch.Tensor, lowest: float) -> torch.Tensor:
    """The (rows,) positions, moved past the end where (rows, L) `logits` are the lowest number."""
    length = logits.shape[1]
    positions = positions.flatten().to(logits.device)
    there = logits.gather(1, positions.clamp(0, length - 1)[:, None])[:, 0] > lowest
    return positions.where(there, length)


class BackboneHead(BackbonePreTrainedModel):
    """A head over a base model; a family's class sets `model_class`."""

    model_class: type[BackboneModel]
    # the name of `classifier` in older checkpoints
    former_classifier: str | None = None

    def __init__(self, config: BackboneConfig):
        super().__init__(config)
        self.model = self.model_class(self.config)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        if cls.former_classifier is not None:
            renamed = {rf"^{cls.former_classifier}\.": "classifier."}
            kwargs["key_mapping"] = renamed | (kwargs.get("key_mapping") or {})
        return super().from_pretrained(*args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        former = f"{prefix}{self.former_classifier}."
        for name in [name for name in state_dict if name.startswith(former)]:
            state_dict[f"{prefix}classifier.{name.removeprefix(former)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_position_embeddings(self) -> nn.Embedding:
        return self.model.get_position_embeddings()

    def base_outputs(self, *inputs: torch.Tensor | None, **kwargs) -> BackboneOutput:
        """The outputs of the base model: hidden states of the tokens, and their `rows`."""
        return self.model(*inputs, **{"use_cache": False} | kwargs | {"return_dict": True, "keep_tokens": True})


class BackboneForMaskedLM(BackboneHead):
    """
    Masked language model (bidirectional).

    Raises:
        ValueError: if `config.is_causal`.
    """

    _tied_weights_keys = {"mlm_decoder.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config: BackboneConfig):
        if config.is_causal:
            raise ValueError(
                f"is_causal=True does not suit {type(self).__name__}: a masked token is read from both sides"
            )
        super().__init__(config)
        self.mlm_head = MaskedLMHead(config)
        self.mlm_decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_decoder

    def set_output_embeddings(self, new_embeddings):
        self.mlm_decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """
        `labels`: (batch, length) token ids, -100 where no loss is taken, as at masked tokens. `logits`: (batch, length,
        vocab_size), 0 at masked tokens; in training with `config.sparse_prediction` (labelled tokens, vocab_size).
        """
        outputs = self.base_outputs(input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, **kwargs)
        hidden_states, rows = outputs.last_hidden_state, outputs.rows
        targets = token_labels(labels, rows)
        is_sparse = labels is not None and self.training and self.config.sparse_prediction
        if is_sparse:
            # in the order of the input, as `labels[labels != -100]` is
            places = rows.scatter(torch.arange(rows.num_tokens, device=targets.device).view(targets.shape))
            labelled = places[rows.scatter(targets, fill=-100) != -100]
            hidden_states, targets = hidden_states.flatten(0, 1)[labelled], targets.flatten()[labelled]
        logits = self.mlm_decoder(self.mlm_head(hidden_states))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=targets, vocab_size=self.config.vocab_size, **kwargs)
        return with_recorded(MaskedLMOutput(loss=loss, logits=logits if is_sparse else rows.scatter(logits)), outputs)


class BackboneForCausalLM(BackboneHead, GenerationMixin):
    """Causal language model. It is causal whatever the configuration says: its own copy has `is_causal=True`."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.word_embeddings.weight"}

    def __init__(self, config: BackboneConfig):
        config = copy.deepcopy(config)
        config.is_causal = True
        super().__init__(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        longest = self.config.max_position_embeddings
        room = longest - input_ids_length
        if room < 1:
            raise ValueError(
                f"the prompt has {input_ids_length} tokens, which leaves no room for a new one in "
                f"max_position_embeddings={longest}: shorten the prompt, or call resize_max_position_embeddings"
            )
        if generation_config.max_length > longest and generation_config.max_new_tokens == PIPELINE_NEW_TOKENS:
            logger.warning_once(
                f"max_new_tokens={PIPELINE_NEW_TOKENS}, which Transformers' pipeline asks for by default, is more than "
                f"max_position_embeddings={longest} have room for: generating at most {room} after this prompt"
            )
            generation_config.max_new_tokens, generation_config.max_length = room, longest
        if generation_config.max_length > longest:
            raise ValueError(
                f"a prompt of {input_ids_length} tokens and max_new_tokens="
                f"{generation_config.max_length - input_ids_length} (max_length={generation_config.max_length}) are "
                f"more than max_position_embeddings={longest}: generate at most {room}, shorten the prompt, or call "
                "resize_max_position_embeddings"
            )
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithCrossAttentions:
        """
        `labels`: (batch, length) token ids, shifted inside by a valid token of the same row, -100 where no loss is
        taken, as at masked tokens; or `shift_labels`, shifted already. `logits_to_keep`: how many logits from the end,
        or which positions, to compute; 0 for all. The rest is as for the base model.
        """
        outputs = self.base_outputs(
            input_ids,
            attention_mask,
            position_ids,
            token_type_ids,
            inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            **kwargs,
        )
        hidden_states, rows = outputs.last_hidden_state, outputs.rows
        if labels is None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(rows.scatter(hidden_states)[:, kept])
            return with_recorded(CausalLMOutputWithCrossAttentions(logits=logits), outputs)
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            shift_labels = token_labels(kwargs.pop("shift_labels", None), rows)
            if shift_labels is None:
                shift_labels = rows.shift(token_labels(labels, rows), -100)
            loss = self.loss_function(
                logits=logits, labels=labels, shift_labels=shift_labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return with_recorded(CausalLMOutputWithCrossAttentions(loss=loss, logits=rows.scatter(logits)), outputs)


class BackboneForSequenceClassification(BackboneHead):
    """
    Sequence classification (single or multi label) or regression, from what `config.classifier_pooling` reads.

    Raises:
        ValueError: for `classifier_pooling="cls"` with a causal trunk, whose first token sees nothing else.
    """

    former_classifier = "sequence_classifier"
    # the loss is a mean over examples: the Trainer itself divides it by the accumulation steps
    accepts_loss_kwargs = False

    def __init__(self, config: BackboneConfig):
        check_pooling(config)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.classifier = ClassificationHead(config, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """
        `labels`: (batch,) classes or targets, or (batch, num_labels). `logits`: (batch, num_labels). The batch is that
        of the documents for packed input.
        """
        outputs = self.base_outputs(input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, **kwargs)
        pooled = pool(outputs.last_hidden_state, outputs.rows, self.config.classifier_pooling)
        logits = self.classifier(pooled)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return with_recorded(SequenceClassifierOutput(loss=loss, logits=logits), outputs)


class BackboneForTokenClassification(BackboneHead):
    """A label for every token."""

    former_classifier = "token_classifier"

    def __init__(self, config: BackboneConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.dropout = nn.Dropout(classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """
        `labels`: (batch, length) classes, -100 where no loss is taken, as at masked tokens. `logits`: (batch, length,
        num_labels), 0 at masked tokens.
        """
        outputs = self.base_outputs(input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, **kwargs)
        logits, rows = self.classifier(self.dropout(outputs.last_hidden_state)), outputs.rows
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=token_labels(labels, rows), config=self.config, **kwargs)
        return with_recorded(TokenClassifierOutput(loss=loss, logits=rows.scatter(logits)), outputs)


class BackboneForQuestionAnswering(BackboneHead):
    """The span of the answer to a question: a start and an end logit for every token."""

    accepts_loss_kwargs = False

    def __init__(self, config: BackboneConfig):
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """
        `start_positions`, `end_positions`: (batch,) token indices, for packed input (documents,) indices in each
        document; one that is at no token, past the length or masked, takes no loss. The logits of masked tokens are the
        lowest number.
        """
        outputs = self.base_outputs(input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds, **kwargs)
        logits, rows = self.qa_outputs(outputs.last_hidden_state), outputs.rows
        lowest = torch.finfo(logits.dtype).min
        start_logits, end_logits = rows.scatter(logits, fill=lowest).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            of_rows = torch.stack((start_logits, end_logits))
            if rows.is_packed:
                mask, documents = rows.row_mask(), rows.to_rows(logits.flatten(0, 1)[None])
                documents = documents if mask is None else documents.masked_fill(~mask[..., None], lowest)
                of_rows = documents.movedim(-1, 0)
            pairs = zip(of_rows, (start_positions, end_positions), strict=True)
            loss = self.loss_function(*of_rows, *(at_tokens(x, positions, lowest) for x, positions in pairs))
        answer = QuestionAnsweringModelOutput(loss=loss, start_logits=start_logits, end_logits=end_logits)
        return with_recorded(answer, outputs)


class BackboneForMultipleChoice(BackboneHead):
    """
    Chooses one of several sequences, each read by itself through `config.classifier_pooling`.

    Raises:
        ValueError: for `classifier_pooling="cls"` with a causal trunk.
    """

    accepts_loss_kwargs = False

    def __init__(self, config: BackboneConfig):
        check_pooling(config)
        super().__init__(config)
        self.choice_classifier = ClassificationHead(config, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> MultipleChoiceModelOutput:
        """All inputs (batch, choices, length, ...); `labels`: (batch,) choices. `logits`: (batch, choices)."""
        num_choices = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
        flat = [
            tensor if tensor is None else tensor.flatten(0, 1)
            for tensor in (input_ids, attention_mask, position_ids, token_type_ids, inputs_embeds)
        ]
        outputs = self.base_outputs(*flat, **kwargs)
        if outputs.rows.is_packed:
            raise ValueError("position_ids restart: a choice is one text, and cannot be packed")
        pooled = pool(outputs.last_hidden_state, outputs.rows, self.config.classifier_pooling)
        logits = self.choice_classifier(pooled).view(-1, num_choices)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return with_recorded(MultipleChoiceModelOutput(loss=loss, logits=logits), outputs)
