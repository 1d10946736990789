"""A training's messages and its choices: before it starts, after its first steps, and at its end."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from synkhorn_console.parser import Chosen

from ..common.checkpoints import reading
from ..measuring.metrics import Scores

# of a new model, which needs more and larger steps than a pre-trained one
NEW_RATE, NEW_STEPS, NEW_EPOCHS = 1e-3, 400, 10
PRETRAINED_STEPS, PRETRAINED_EPOCHS = 250, 10
# steps after which the time of the others is known, and most classes that are listed
TIMED_STEPS, MOST_CLASSES = 8, 20
# rows of a class, below which a message names it
FEWEST = 3


def say(training: TrainingArguments, text: str) -> None:
    """Print, in one process of several."""
    if training.process_index == 0:
        print(text, flush=True)


def choose(training: TrainingArguments, rows: int, is_new: bool) -> None:
    """Set the learning rate and the epochs that the user has not given, and print the plan."""
    batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
    in_epoch = math.ceil(rows / batch)
    if isinstance(training.learning_rate, Chosen):
        training.learning_rate = NEW_RATE if is_new else float(training.learning_rate)
    if isinstance(training.num_train_epochs, Chosen):
        steps, most = (NEW_STEPS, NEW_EPOCHS) if is_new else (PRETRAINED_STEPS, PRETRAINED_EPOCHS)
        training.num_train_epochs = float(min(most, max(1, math.ceil(steps / in_epoch))))
    is_cut = training.max_steps > 0
    steps = training.max_steps if is_cut else math.ceil(training.num_train_epochs * in_epoch)
    epochs = f"{steps / in_epoch:.3g}"
    say(
        training,
        f"Training: {steps:,} steps of {batch} rows ({epochs} {'epoch' if epochs == '1' else 'epochs'}; "
        f"{'--max_steps' if is_cut else '--num_train_epochs'}), learning rate "
        f"{training.learning_rate:g} (--learning_rate), "
        + ("suited to a new model" if is_new else "suited to a pre-trained model")
        + f", on {training.device.type}",
    )


def describe_model(model: PreTrainedModel, start: str | None) -> str:
    """A line about the model."""
    config = reading(model.config)
    more = f" and a decoder of {model.config.decoder.num_hidden_layers}" if config is not model.config else ""
    origin = "new, from scratch (--model_config changes its size)" if start is None else f"from {start}"
    return (
        f"Model: {type(model).__name__}, {origin}: {config.num_hidden_layers} layers of width {config.hidden_size}"
        f"{more}, "
        f"{model.num_parameters():,} parameters, at most {config.max_position_embeddings:,} tokens"
    )


def describe_labels(labels: Sequence[Any]) -> str:
    """The classes with their counts; nothing where labels are numbers or lists."""
    if not labels or not isinstance(labels[0], str):
        return ""
    counts = Counter(labels).most_common()
    listed = ", ".join(f"{label} {count:,}" for label, count in counts[:MOST_CLASSES])
    return listed + (f" and {len(counts) - MOST_CLASSES} more" if len(counts) > MOST_CLASSES else "")


def rare_classes(labels: Sequence[str]) -> str:
    """The classes with too few rows to be learned; nothing where there are none."""
    rare = [label for label, count in Counter(labels).items() if count < FEWEST]
    return f"Fewer than {FEWEST} rows to learn from: {', '.join(rare)} (is a name misspelt?)" if rare else ""


def summary(
    where: str, results: Scores, folder: str, following: str, baseline: Scores | None = None, guess: str = ""
) -> str:
    """The last message of a training: the metrics, beside those of a guess, the folder, and the next command."""
    width = max(map(len, results))
    head = f"{'':<{width}}  {'model':>8}" + (f"  {guess}" if baseline else "")
    rows = [
        f"{name:<{width}}  {value:>8.4f}" + (f"  {baseline[name]:>8.4f}" if baseline and name in baseline else "")
        for name, value in results.items()
    ]
    lines = ["", f"Measured on {where}:", head, *rows, "", f"Everything is in {folder} (card: README.md).", following]
    return "\n".join(lines)


class ExpectedTime(TrainerCallback):
    """Says after the first steps how long all of them will take."""

    def on_step_begin(self, args, state, control, **kwargs):
        if not hasattr(self, "first"):
            self.first = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        done = state.global_step - self.first
        # the first step is slower than the others
        if done == 1:
            self.start = time.perf_counter()
        elif done == TIMED_STEPS and state.max_steps > 2 * TIMED_STEPS:
            left = (time.perf_counter() - self.start) / (done - 1) * (state.max_steps - state.global_step)
            unit = f"{left / 60:.0f} minutes" if left >= 90 else f"{left:.0f} seconds"
            say(args, f"Expected: {unit} of training, and the evaluations")
