"""Rows of text to model, masked or causal, and how well a model predicts them: perplexity and bits per byte."""

import hashlib
import math
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from synkhorn.tokenization.tokenization_synkhorn import byte_characters

from ..data.text_data import Examples
from ..measuring.metrics import IGNORED, nats_and_counts

# documents that are packed together: no row holds documents of two such groups
PACKED_TOGETHER = 1000
# texts of a stream that are shuffled at a time
SHUFFLED_TEXTS = 1000
# so that each evaluation, of any run, masks the same tokens
EVALUATION_SEED = 0
# column of a row's place in a stream
PLACE = "place"


def end_of_document(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a document: `</s>`, or whatever a tokenizer has in its place."""
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    if end is None:
        raise ValueError(f"the tokenizer {type(tokenizer).__name__} has no eos_token and no sep_token to end documents")
    return end


def text_rows(
    batch: dict[str, list], column: str, tokenizer: PreTrainedTokenizerBase, max_length: int, packing: bool
) -> dict[str, list[list[int]]]:
    """
    Cut texts into rows of at most `max_length` tokens, without losing any.

    A document is what the tokenizer makes of it, special tokens too, and always ends in the end of a document. One
    longer than a row is cut into parts. Packed, a row holds as many documents or parts, one after the other, as fit
    into it, and `position_ids` that restart at each of them; else each has a row of its own.
    """
    end = end_of_document(tokenizer)
    texts = [text for text in batch[column] if text and text.strip()]
    documents = tokenizer(texts, verbose=False).input_ids if texts else []
    documents = [ids if ids[-1] == end else [*ids, end] for ids in documents]
    parts = [ids[i : i + max_length] for ids in documents for i in range(0, len(ids), max_length)]
    if not packing:
        return {"input_ids": parts}
    rows: list[list[list[int]]] = []
    for part in parts:
        if rows and sum(map(len, rows[-1])) + len(part) <= max_length:
            rows[-1].append(part)
        else:
            rows.append([part])
    return {
        "input_ids": [list(chain.from_iterable(row)) for row in rows],
        "position_ids": [list(chain.from_iterable(range(len(part)) for part in row)) for row in rows],
    }


def as_rows(
    examples: Examples,
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    packing: bool,
    num_workers: int | None,
) -> Examples:
    """A dataset of texts as one of rows, see `text_rows`."""
    options: dict[str, Any] = {"batched": True, "batch_size": PACKED_TOGETHER}
    if hasattr(examples, "__len__"):
        options |= {"num_proc": num_workers, "desc": "Tokenizing"}
    cut = partial(text_rows, column=column, tokenizer=tokenizer, max_length=max_length, packing=packing)
    return examples.map(cut, remove_columns=list(next(iter(examples))), **options)


def endless(texts: IterableDataset, seed: int) -> IterableDataset:
    """A stream that starts again at its end, shuffled within a buffer."""
    return texts.repeat(None).shuffle(seed=seed, buffer_size=SHUFFLED_TEXTS)


def with_places(rows: IterableDataset) -> IterableDataset:
    """A stream whose rows know their place in it."""
    return rows.map(lambda row, place: {PLACE: place}, with_indices=True)


def is_byte_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each token is a byte, or special."""
    special = set(tokenizer.all_special_ids)
    ordinary = {token for token, index in tokenizer.get_vocab().items() if index not in special}
    return ordinary == set(byte_characters())


def measures(prediction: EvalPrediction, of_bytes: bool) -> dict[str, float]:
    """
    `perplexity`, exp of the mean -ln p over all predicted tokens of the split; and, of a byte-level model,
    `bits_per_byte`: the sum of -log2 p over all predicted tokens, ends of documents too, by the number of predicted
    bytes. A causal model predicts all but the first token of a row from those before it; a masked one only the masked
    bytes, given what is left visible around them, so that its bits are not a code length.
    """
    nats, tokens, ordinary = np.asarray(prediction.predictions).sum(0, dtype=np.float64).tolist()
    mean = nats / tokens
    # exp overflows where a run diverges
    measured = {"perplexity": math.exp(mean) if mean < 700 else math.inf}
    if of_bytes:
        measured["bits_per_byte"] = nats / math.log(2) / ordinary
    return measured


class RowCollator:
    """
    Labels rows, masks them as BERT's training does where the model is a masked one, and makes a batch of them: packed
    rows one after the other in a batch of one, with `position_ids` that restart at each document; others padded.

    The masked tokens are drawn from `seed`, the epoch and the row alone, or, in a stream, from the row's place in it: a
    resumed run, and one of several processes, mask the same tokens as one whole run.

    Args:
        mlm_probability: share of tokens that are masked; `None` for a causal model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float | None, seed: int):
        self.masking = None
        if mlm_probability is not None:
            self.masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mlm_probability)
        # pads labels too
        self.padding = DataCollatorForTokenClassification(tokenizer)
        self.seed, self.epoch = seed, 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labelled = [self.labelled(row["input_ids"], row.get(PLACE, self.epoch)) for row in rows]
        if "position_ids" not in rows[0]:
            return self.padding(labelled)
        positions = [row["position_ids"] for row in rows]
        batch = {name: torch.tensor([list(chain(*(row[name] for row in labelled)))]) for name in labelled[0]}
        batch["position_ids"] = torch.tensor([list(chain(*positions))])
        if self.masking is None:
            # nor that of a later document
            batch["labels"] = batch["labels"].masked_fill(batch["position_ids"] == 0, IGNORED)
        return batch

    def labelled(self, ids: list[int], place: int) -> dict[str, list[int]]:
        if self.masking is None:
            # nothing predicts the first token, not even padding before it
            return {"input_ids": ids, "labels": [IGNORED, *ids[1:]]}
        drawn_from = hashlib.blake2b(f"{self.seed} {place} {ids}".encode(), digest_size=7).digest()
        self.masking.generator = torch.Generator().manual_seed(int.from_bytes(drawn_from, "big"))
        masked, labels = self.masking.torch_mask_tokens(torch.tensor([ids]))
        return {"input_ids": masked[0].tolist(), "labels": labels[0].tolist()}


class LanguageModelTrainer(Trainer):
    """
    A `Trainer` that masks the same tokens in each evaluation, and measures perplexity over tokens, not batches.

    Args:
        mlm_probability: share of tokens that are masked; `None` for a causal model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        processing_class: PreTrainedTokenizerBase,
        mlm_probability: float | None,
        **kwargs,
    ):
        collator = RowCollator(processing_class, mlm_probability, args.seed)
        self.evaluation_collator = RowCollator(processing_class, mlm_probability, EVALUATION_SEED)
        special_ids = tuple(processing_class.all_special_ids)
        super().__init__(
            model,
            args,
            processing_class=processing_class,
            data_collator=collator,
            preprocess_logits_for_metrics=partial(
                nats_and_counts, is_causal=mlm_probability is None, special_ids=special_ids
            ),
            compute_metrics=partial(measures, of_bytes=is_byte_tokenizer(processing_class)),
            **kwargs,
        )
        if mlm_probability is not None:
            self.add_callback(EpochOfMasks(collator))

    def get_eval_dataloader(self, eval_dataset=None):
        training, self.data_collator = self.data_collator, self.evaluation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training


class EpochOfMasks(TrainerCallback):
    """Tells a collator the epoch, so that each masks other tokens."""

    def __init__(self, collator: RowCollator):
        self.collator = collator

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.collator.epoch = int(state.epoch)
