"""Embeddings that are trained on pairs of a query and its document, by sentence-transformers."""

from collections import defaultdict
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainingArguments, set_seed

from ..data.text_data import DataArguments, load_splits
from ..measuring.metrics import Scores
from ..tasks.embeddings import EmbeddingsArguments
from .finetuning import DEFAULTS, OF_THE_TASK, FinetuneArguments
from .messages import ExpectedTime, choose, describe_model, say, summary
from .models import ModelArguments
from .runs import (
    checkpoint_to_resume,
    explained_when_the_disk_is_full,
    finish,
    results_of,
    settings_of,
    train_to_the_end,
)

# of the evaluator's many metrics
METRICS = ("accuracy@1", "mrr@10", "ndcg@10", "recall@10")
BEST = "ndcg@10"
DATACLASSES = (ModelArguments, DataArguments, EmbeddingsArguments, FinetuneArguments, TrainingArguments)


def retrieval(pairs: Dataset, name: str, batch_size: int) -> Any:
    """The evaluator of a split: each query is to find its document among all of the split's."""
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    ids = {text: str(place) for place, text in enumerate(dict.fromkeys(pairs["document"]))}
    right: dict[str, set[str]] = defaultdict(set)
    for query, document in zip(pairs["query"], pairs["document"], strict=True):
        right[query].add(ids[document])
    return InformationRetrievalEvaluator(
        {query: query for query in right}, {place: text for text, place in ids.items()}, dict(right), name=name,
        batch_size=batch_size, write_csv=False,
    )  # fmt: skip


def finetune_embeddings(
    model_arguments: ModelArguments,
    data: DataArguments,
    own: EmbeddingsArguments,
    finetuning: FinetuneArguments,
    training: TrainingArguments,
) -> Scores:
    """
    Train a checkpoint's embeddings, and return what was measured on the test split, or the validation split where there
    is none: `accuracy@1`, `mrr@10`, `ndcg@10` and `recall@10`, by cosine.

    Args:
        model_arguments, data, own, finetuning, training: see `DATACLASSES`.

    Raises:
        ModuleNotFoundError: if sentence-transformers is not installed.
        ValueError: for arguments that do not fit.
    """
    start = model_arguments.model_name_or_path
    if start is None:
        raise ValueError(
            "model_name_or_path=None: embeddings are trained from a checkpoint; give --model_name_or_path, such as a "
            "folder that `synkhorn convert` made"
        )
    if finetuning.lora_r is not None:
        raise ValueError(f"lora_r={finetuning.lora_r}: embeddings are trained with all weights; leave --lora_r out")
    if data.streaming:
        raise ValueError("streaming=True: fine-tuning reads its data several times; leave --streaming out")
    if find_spec("sentence_transformers") is None:
        raise ModuleNotFoundError("sentence-transformers is not installed: pip install sentence-transformers")
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    settings = settings_of(model_arguments, data, own, finetuning, training)
    checkpoint = checkpoint_to_resume("finetune embeddings", training, settings)
    if (results := results_of(training)) is not None:
        say(training, f"{training.output_dir} is finished: {results}. Choose another --output_dir to train again")
        return results
    columns = [own.query_column, own.document_column]
    splits = load_splits(data, columns)
    for split, rows in splits.items():
        wrong = next((x for column in columns for x in rows[column] if not isinstance(x, str)), None)
        if wrong is not None:
            raise ValueError(f"the split {split} has {wrong!r} where there must be a text: remove the rows without one")
    pairs = {
        split: rows.select_columns(columns).rename_columns(dict(zip(columns, ("query", "document"), strict=True)))
        if columns != ["query", "document"] else rows.select_columns(columns)
        for split, rows in splits.items()
    }  # fmt: skip
    say(training, "Data: " + ", ".join(f"{split} {len(rows):,}" for split, rows in pairs.items()) + " pairs")
    set_seed(training.seed)
    model = SentenceTransformer(
        start,
        revision=model_arguments.revision,
        trust_remote_code=model_arguments.trust_remote_code,
        model_kwargs={"attn_implementation": model_arguments.attn_implementation},
        device="cpu" if training.use_cpu else None,
    )
    encoder: Any = model[0].auto_model
    longest = encoder.config.max_position_embeddings
    model.max_seq_length = finetuning.max_length or longest
    if model.max_seq_length > longest:
        raise ValueError(f"max_length={finetuning.max_length} must be 1 to {longest}, which the model takes")
    say(training, describe_model(encoder, start))
    choose(training, len(pairs["train"]), is_new=False)
    split, batch_size = "test" if "test" in pairs else "validation", training.per_device_eval_batch_size
    if training.metric_for_best_model == OF_THE_TASK:
        training.metric_for_best_model = f"eval_validation_cosine_{BEST}"
    given = {entry.name: getattr(training, entry.name) for entry in fields(TrainingArguments) if entry.init}
    # a document that answers two queries of a batch is no wrong answer
    arguments = SentenceTransformerTrainingArguments(**given | {"batch_sampler": "no_duplicates"})
    loss = (
        losses.MultipleNegativesRankingLoss(model)
        if own.mini_batch_size is None
        else losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=own.mini_batch_size)
    )
    trainer = SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=pairs["train"],
        loss=loss,
        evaluator=retrieval(pairs["validation"], "validation", batch_size),
        callbacks=[ExpectedTime()],
    )
    with explained_when_the_disk_is_full(training.output_dir):
        train_to_the_end(trainer, checkpoint)
        if arguments.should_save:
            model.save_pretrained(training.output_dir)
            # where the evaluator would have written tables
            for left in Path(training.output_dir).glob("eval"):
                left.rmdir()
        measured = retrieval(pairs[split], split, batch_size)(model)
        results = {name: measured[f"{split}_cosine_{name}"] for name in METRICS}
        finish(trainer, results, DEFAULTS)
    use = f'SentenceTransformer("{training.output_dir}", trust_remote_code=True).encode(["A text."])'
    where = f"{len(pairs[split]):,} {'test' if split == 'test' else 'held-out'} pairs"
    say(training, summary(where, results, training.output_dir, f"Use it: {use}"))
    return results
