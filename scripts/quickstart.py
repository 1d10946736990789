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
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

import synkhorn

from .model_card import write_model_card
from .reviews import LABELS, PACKAGED, load_reviews

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

MAX_LENGTH = 512
VALIDATION_SIZE = 1000
SEED = 0
EXAMPLES = [
    "One of the finest films I have seen in years: warm, funny, and beautifully acted.",
    "A dull, clumsy mess. I wanted my money back after twenty minutes.",
]
# what each family's encoder has beyond the shared sizes
FAMILIES: dict[str, dict] = {"synthesizer": {"synthesizers": ["random"]}, "sinkhorn": {"block_size": 64}}
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
    family: str = field(default="synthesizer", metadata={"help": "Model family.", "choices": list(FAMILIES)})
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
        return get_last_checkpoint(folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    record.write_text(json.dumps(arguments))
    return None


def draw_curves(history: list[dict], path: Path) -> None:
    """Draw training loss, validation loss and validation accuracy of a `Trainer`'s log against the epoch."""
    figure, (losses, accuracies) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, key, label in (
        (losses, "loss", "training"),
        (losses, "eval_loss", "validation"),
        (accuracies, "eval_accuracy", "validation"),
    ):
        points = [(entry["epoch"], float(entry[key])) for entry in history if key in entry]
        axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    losses.set(xlabel="epoch", ylabel="cross-entropy", title="Loss")
    accuracies.set(xlabel="epoch", ylabel="accuracy", title="Validation accuracy")
    for axis in (losses, accuracies):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(args: list[str] | None = None) -> dict[str, float]:
    """Run the quickstart and return what was measured on the held-out reviews."""
    parser = HfArgumentParser(QuickstartArguments, description=__doc__)  # type: ignore[arg-type]
    (arguments,) = parser.parse_args_into_dataclasses(args)
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
        **FAMILIES[arguments.family],
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
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
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
    interrupted_at = resumable_checkpoint(checkpoints, dict(vars(arguments)))
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=interrupted_at)
    minutes = (time.perf_counter() - start) / 60
    duration = (
        f"in {minutes:.1f} minutes on {trainer.args.device.type}" if interrupted_at is None else "in several runs"
    )
    measured = trainer.predict(encode(test, "held-out reviews")).metrics
    metrics = {name: measured[f"test_{name}"] for name in ("accuracy", "f1")}
    print(f"Trained {duration}. Held-out accuracy: {metrics['accuracy']:.4f} on {len(test):,} reviews")

    trainer.save_model(str(output))
    draw_curves(trainer.state.log_history, output / "curves.png")
    write_card(output, arguments, training, model, metrics, duration, len(train), len(test))
    # only now: an interrupted run goes on from its last checkpoint
    shutil.rmtree(checkpoints)

    print(f"Saved to {output}. A new process, which cannot import synkhorn, classifies two reviews:", flush=True)
    subprocess.run([sys.executable, "-c", USE_SAVED_MODEL, str(output), *EXAMPLES], check=True)
    return metrics


def write_card(output, arguments, training, model, metrics, duration, train_size, test_size) -> None:
    """Write the model card of a finished run."""
    packaged = arguments.dataset == PACKAGED
    settings = FAMILIES[arguments.family]
    members = ", ".join(f"`{name}={value!r}`" for name, value in settings.items())
    write_model_card(
        output,
        model_type=arguments.family,
        model_name=output.name,
        pipeline_tag="text-classification",
        dataset_name="IMDb (training half, own split)" if packaged else arguments.dataset,
        dataset_id="stanfordnlp/imdb" if packaged else arguments.dataset,
        split=f"{test_size:,} held-out reviews" if packaged else "test",
        metrics=metrics,
        hyperparameters={
            "epochs": training.num_train_epochs,
            "batch size": training.per_device_train_batch_size,
            "learning rate": f"{training.learning_rate}, linear, warm-up over {training.warmup_steps:.0%} of the steps",
            "weight decay": training.weight_decay,
            "dropout": model.config.hidden_dropout,
            "precision": "bfloat16 autocast" if training.bf16 else "float32",
            "layers, width, heads, feed-forward": f"{model.config.num_hidden_layers}, {model.config.hidden_size}, "
            f"{model.config.num_attention_heads}, {model.config.intermediate_size}",
            "parameters": f"{model.num_parameters():,}",
            "seed": training.seed,
        },
        texts={
            "summary": f"A small {arguments.family.capitalize()} encoder ({members}) that tells positive from negative "
            "movie reviews, trained from scratch.",
            "example": EXAMPLES[0],
            "training": f"Trained from scratch on {train_size:,} English IMDb reviews, cut at {MAX_LENGTH} tokens of a "
            f"byte-pair encoding trained on the same reviews, {duration}. The checkpoint with the best accuracy on "
            f"{VALIDATION_SIZE:,} further reviews was kept.",
            "command": f"python -m synkhorn.scripts.quickstart --family {arguments.family} "
            f"--dataset {arguments.dataset} --num_train_epochs {arguments.num_train_epochs:g}",
            "limits": f"English movie reviews only; text beyond the first {MAX_LENGTH} tokens is cut off by the "
            "tokenizer. It was not pre-trained, and knows no more of the language than these reviews show.",
            "curve": "![loss and accuracy](curves.png)",
        },
    )


if __name__ == "__main__":
    main()
