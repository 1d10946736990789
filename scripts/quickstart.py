"""
The main job from end to end: train a tokenizer and a small encoder on real movie reviews, measure it on held-out ones,
save it with a model card, and use the saved folder in a new process that cannot import `synkhorn`.

    python -m synkhorn.scripts.quickstart
    python -m synkhorn.scripts.quickstart --dataset stanfordnlp/imdb --output_dir my-model
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

import synkhorn

from .common.arguments import parse
from .common.precision import device_type
from .data.reviews import LABELS, PACKAGED, load_reviews
from .data.text_data import DataArguments, described
from .tasks.task import pipeline_use
from .training.model_card import CardTexts, ModelCardCallback
from .training.runs import remove_incomplete_checkpoints, train_to_the_end

MAX_LENGTH = 512
VALIDATION_SIZE = 1000
SEED = 0
EXAMPLES = [
    "One of the finest films I have seen in years: warm, funny, and beautifully acted.",
    "A dull, clumsy mess. I wanted my money back after twenty minutes.",
]
# run in a new process, where an import of the package fails
USE_SAVED_MODEL = """
import sys
sys.modules["synkhorn"] = None
from transformers import pipeline
classify = pipeline("text-classification", model=sys.argv[1], trust_remote_code=True)
for text, result in zip(sys.argv[2:], classify(sys.argv[2:])):
    print(f"{result['label']:>8} {result['score']:.3f}  {text}")
"""


@dataclass
class QuickstartArguments:
    family: str = field(default="synthesizer", metadata={"help": "Model family.", "choices": synkhorn.FAMILIES})
    dataset: str = field(
        default=PACKAGED,
        metadata={"help": "`reviews`, the packaged ones, or a dataset of the Hub such as stanfordnlp/imdb."},
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "Where to save; runs/quickstart-FAMILY if not given."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training reviews."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many reviews only."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Measure on so many reviews only."})
    # `parse` knows a third value, `auto`, which is the default
    bf16: bool = field(default=False)


def compute_metrics(prediction) -> dict[str, float]:
    labels = prediction.predictions.argmax(-1)
    return {
        "accuracy": accuracy_score(prediction.label_ids, labels),
        "f1": f1_score(prediction.label_ids, labels),
    }


def resumable_checkpoint(folder: Path, arguments: dict) -> str | None:
    """The last checkpoint of an interrupted run with the same arguments, or `None`; any other run's are removed."""
    record = folder / "arguments.json"
    if record.exists() and json.loads(record.read_text()) == arguments:
        remove_incomplete_checkpoints(folder)
        return get_last_checkpoint(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record.write_text(json.dumps(arguments))
    return None


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the quickstart and return what was measured on the held-out reviews."""
    (arguments,) = parse([QuickstartArguments], args, __doc__)
    output = Path(arguments.output_dir or f"runs/quickstart-{arguments.family}")
    checkpoints = output / "checkpoints"
    set_seed(SEED)

    print(f"Reviews: {arguments.dataset}", flush=True)
    reviews = load_reviews(arguments.dataset)
    train = reviews["train"].shuffle(seed=SEED)
    if arguments.max_train_samples:
        train = train.select(range(arguments.max_train_samples + VALIDATION_SIZE))
    split = train.train_test_split(test_size=VALIDATION_SIZE, seed=SEED)
    train, validation, test = split["train"], split["test"], reviews["test"]
    if arguments.max_test_samples:
        test = test.shuffle(seed=SEED).select(range(arguments.max_test_samples))

    print("Tokenizer: byte-pair encoding, 8,192 tokens", flush=True)
    tokenizer = synkhorn.train_tokenizer(train["text"], vocab_size=8192, model_max_length=MAX_LENGTH)

    def encode(dataset, name):
        return dataset.map(
            lambda batch: tokenizer(batch["text"], truncation=True),
            batched=True,
            remove_columns=["text"],
            desc=f"Tokenizing {name}",
        )

    config = AutoConfig.for_model(
        arguments.family,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout=0.1,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        **synkhorn.FAMILIES[arguments.family].quickstart,
        **synkhorn.token_fields(tokenizer),
    )
    model = AutoModelForSequenceClassification.from_config(config)
    print(f"Model: {type(model).__name__}, {model.num_parameters():,} parameters", flush=True)
    training = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=arguments.num_train_epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=1e-3,
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=arguments.bf16,
        use_cpu=device_type() == "cpu",
        eval_strategy="steps",
        eval_steps=0.125,
        save_strategy="steps",
        save_steps=0.125,
        save_total_limit=1,
        logging_steps=0.02,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to=[],
        seed=SEED,
    )
    trainer = Trainer(
        model,
        training,
        train_dataset=encode(train, "training reviews"),
        eval_dataset=encode(validation, "validation reviews"),
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
    )
    callback = ModelCardCallback(output, card_texts(output, arguments, len(train), len(test)), metric="accuracy")
    trainer.add_callback(callback)
    train_to_the_end(trainer, resumable_checkpoint(checkpoints, dict(vars(arguments))))
    measured = trainer.predict(encode(test, "held-out reviews")).metrics
    metrics = {name: measured[f"test_{name}"] for name in ("accuracy", "f1")}
    print(f"Trained {callback.duration}. Held-out accuracy: {metrics['accuracy']:.4f} on {len(test):,} reviews")
    trainer.save_model(str(output))
    # only now: an interrupted run goes on from its last checkpoint
    shutil.rmtree(checkpoints)

    print(f"Saved to {output}. A new process, which cannot import synkhorn, classifies two reviews:", flush=True)
    subprocess.run([sys.executable, "-c", USE_SAVED_MODEL, str(output), *EXAMPLES], check=True)
    return metrics


def card_texts(output: Path, arguments: QuickstartArguments, train_size: int, test_size: int) -> CardTexts:
    """What the card says of a finished run."""
    family = synkhorn.FAMILIES[arguments.family]
    members = ", ".join(f"`{name}={value!r}`" for name, value in family.quickstart.items())
    return CardTexts(
        pipeline_tag="text-classification",
        splits={"test": f"{test_size:,} held-out reviews" if arguments.dataset == PACKAGED else "test"},
        summary=f"A small {family.title} encoder ({members}) that tells positive from negative movie "
        "reviews, trained from scratch.",
        use=pipeline_use("text-classification", output.name, repr(EXAMPLES[0])),
        training=f"{train_size:,} English reviews, cut at {MAX_LENGTH} tokens of a byte-pair encoding trained on the "
        f"same reviews. The checkpoint with the best accuracy on {VALIDATION_SIZE:,} further reviews was kept.",
        command=f"python -m synkhorn.scripts.quickstart --family {arguments.family} --dataset {arguments.dataset} "
        f"--num_train_epochs {arguments.num_train_epochs:g} --bf16 {str(arguments.bf16).lower()}",
        limits=f"English movie reviews only; text beyond the first {MAX_LENGTH} tokens is cut off by the tokenizer. It "
        "was not pre-trained, and knows no more of the language than these reviews show.",
        license="apache-2.0",
        **described(DataArguments(dataset=arguments.dataset)),
    )


if __name__ == "__main__":
    main()
