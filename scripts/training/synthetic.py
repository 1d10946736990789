"""Sinkhorn models, and one with local attention, trained on sequences drawn as they train."""

import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from ..data.synthetic_tasks import IGNORED, chance_of_copy, chance_of_sort, copy_across_blocks, sort_sequence
from ..measuring.report import about_line

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

Draw = Callable[..., tuple[torch.Tensor, torch.Tensor]]
LOCAL = "local"
# what each compared model has beyond the shared sizes
COPY_MODELS = {
    "Sinkhorn, softmax": {"causal_balancing": "softmax"},
    "Sinkhorn, balanced": {"causal_balancing": "sinkhorn"},
    LOCAL: {"sort_net": "none"},
}
SORT_MODELS = {"Sinkhorn": {}, LOCAL: {"sort_net": "none"}}


def parser(description: str | None = None) -> ArgumentParser:
    """The options of `train_synthetic`."""
    shared = ArgumentParser(add_help=False)
    shared.add_argument("--vocab_size", type=int, default=32, help="different tokens, all equally likely")
    shared.add_argument("--block_size", type=int, default=8, help="tokens of a block")
    shared.add_argument("--hidden_size", type=int, default=64)
    shared.add_argument("--num_hidden_layers", type=int, default=2)
    shared.add_argument("--num_attention_heads", type=int, default=4)
    shared.add_argument("--sinkhorn_iterations", type=int, default=7, help="balancings of the sort matrix")
    shared.add_argument("--steps", type=int, default=1000, help="batches that each model is trained on")
    shared.add_argument("--batch_size", type=int, default=32)
    shared.add_argument("--learning_rate", type=float, default=2e-3, help="the highest: warm-up, then a cosine to 0")
    shared.add_argument("--eval_every", type=int, default=100, help="steps between two measurements")
    shared.add_argument("--eval_size", type=int, default=512, help="fresh sequences of each measurement")
    shared.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    shared.add_argument("--seed", type=int, default=0, help="of the models, of their data and of the evaluation")
    commands = ArgumentParser(description=description, formatter_class=ArgumentDefaultsHelpFormatter)
    tasks = commands.add_subparsers(dest="task", required=True, metavar="copy|sort")
    options: dict[str, Any] = {"parents": [shared], "formatter_class": ArgumentDefaultsHelpFormatter}
    copy = tasks.add_parser("copy", help="causal: repeat the block some blocks before", **options)
    copy.add_argument("--num_blocks", type=int, default=8, help="blocks of a sequence")
    copy.add_argument("--distance", type=int, default=3, help="how many blocks later a block is repeated")
    sort = tasks.add_parser("sort", help="bidirectional: emit the tokens in ascending order", **options)
    sort.add_argument("--length", type=int, default=64, help="tokens of a sequence")
    for name, task in tasks.choices.items():
        task.add_argument(
            "--output", default=f"benchmarks/synthetic/{name}", help="path without ending of the table, JSON and plot"
        )
    return commands


class Task(NamedTuple):
    """
    title: what the models are asked for.
    auto_class: the Auto class of their head.
    shift: how many positions before its label a model answers: 1 for a causal language model, else 0.
    draw: (batch size, generator) -> ids and labels, (batch, length).
    chance: accuracy of a guess.
    models: name -> fields of the configuration.
    """

    title: str
    auto_class: Any
    shift: int
    draw: Draw
    chance: float
    models: dict[str, dict]


def task_of(arguments: Namespace) -> Task:
    """The task that the command line asks for."""
    vocab_size = arguments.vocab_size
    if arguments.task == "copy":
        block_size, num_blocks, distance = arguments.block_size, arguments.num_blocks, arguments.distance
        return Task(
            title=f"Copy across blocks: {num_blocks} blocks of {block_size} tokens, repeated {distance} blocks later",
            auto_class=AutoModelForCausalLM,
            shift=1,
            draw=partial(
                copy_across_blocks,
                block_size=block_size,
                num_blocks=num_blocks,
                distance=distance,
                vocab_size=vocab_size,
            ),
            chance=chance_of_copy(vocab_size),
            models=COPY_MODELS,
        )
    return Task(
        title=f"Sort {arguments.length} tokens, attention in blocks of {arguments.block_size}",
        auto_class=AutoModelForTokenClassification,
        shift=0,
        draw=partial(sort_sequence, length=arguments.length, vocab_size=vocab_size),
        chance=chance_of_sort(arguments.length, vocab_size),
        models=SORT_MODELS,
    )


def build(task: Task, fields: dict, arguments: Namespace) -> nn.Module:
    """A model of the shared sizes with `fields`, from the seed."""
    ids, _ = task.draw(batch_size=1, generator=torch.Generator())
    set_seed(arguments.seed)
    config = AutoConfig.for_model(
        "sinkhorn",
        vocab_size=arguments.vocab_size,
        num_labels=arguments.vocab_size,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers,
        num_attention_heads=arguments.num_attention_heads,
        intermediate_size=4 * arguments.hidden_size,
        max_position_embeddings=ids.shape[1],
        block_size=arguments.block_size,
        sinkhorn_iterations=arguments.sinkhorn_iterations,
        hidden_dropout=0.0,
        pad_token_id=None,
        **fields,
    )
    return task.auto_class.from_config(config)


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, arguments: Namespace) -> dict[str, float]:
    """Share of right tokens, and of sequences without a wrong one, on sequences that are never trained on."""
    ids, labels = task.draw(batch_size=arguments.eval_size, generator=generator(arguments.seed, "evaluation"))
    model.eval()
    answers = torch.cat([model(part).logits.argmax(-1) for part in ids.split(arguments.batch_size)])
    answers, labels = answers[:, : answers.shape[1] - task.shift], labels[:, task.shift :]
    counted = labels != IGNORED
    right = answers == labels
    return {
        "accuracy": right[counted].float().mean().item(),
        "exact match": (right | ~counted).all(-1).float().mean().item(),
    }


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for `training` or `evaluation`: far apart, so that no sequence is in both."""
    return torch.Generator().manual_seed(seed + {"training": 0, "evaluation": 2**32}[purpose])


def train(name: str, task: Task, arguments: Namespace) -> dict:
    """Train one model; its measurements before the first step and every `eval_every` steps."""
    model = build(task, task.models[name], arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, arguments.steps // 20, arguments.steps)
    training = generator(arguments.seed, "training")
    points = [{"step": 0} | evaluate(model, task, arguments)]
    start = time.perf_counter()
    bar = tqdm(range(1, arguments.steps + 1), desc=f"{name:<20}")
    for step in bar:
        ids, labels = task.draw(batch_size=arguments.batch_size, generator=training)
        loss = model.train()(ids, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % arguments.eval_every == 0 or step == arguments.steps:
            points.append({"step": step} | evaluate(model, task, arguments))
            bar.set_postfix(accuracy=f"{points[-1]['accuracy']:.3f}")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"model": name, "parameters": parameters, "seconds": time.perf_counter() - start, "points": points}


def draw_accuracy(results: list[dict], task: Task, path: Path) -> None:
    """Draw accuracy against steps, one line a model, and the accuracy of a guess."""
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for result, marker in zip(results, "os^", strict=False):
        steps = [point["step"] for point in result["points"]]
        accuracy = [point["accuracy"] for point in result["points"]]
        axis.plot(steps, accuracy, marker=marker, markersize=4, label=f"{result['model']}: {accuracy[-1]:.3f}")
    axis.axhline(task.chance, color="black", linestyle="--", linewidth=1, label=f"guess: {task.chance:.3f}")
    axis.set(xlabel="training steps", ylabel="token accuracy on fresh sequences", ylim=(-0.02, 1.02))
    axis.set_title(task.title, fontsize=11)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(results: list[dict], task: Task, arguments: Namespace, about: dict[str, str]) -> str:
    """The last measurements as Markdown."""
    lines = [
        f"# {task.title}",
        "",
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads, "
        f"{arguments.vocab_size} different tokens; {arguments.steps} steps of {arguments.batch_size} sequences, "
        f"seed {arguments.seed}, {arguments.threads} thread(s). Measured on {arguments.eval_size} fresh sequences; "
        f"a guess has {task.chance:.3f} of the tokens right.",
        "",
        about_line(about),
        "",
        "| model | settings | token accuracy | exact match | steps to 0.95 | parameters | seconds |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        last = result["points"][-1]
        settings = ", ".join(f"`{name}={value!r}`" for name, value in task.models[result["model"]].items())
        reached = next((str(point["step"]) for point in result["points"] if point["accuracy"] >= 0.95), "not reached")
        lines.append(
            f"| {result['model']} | {settings or 'the defaults'} | {last['accuracy']:.3f} | {last['exact match']:.3f} "
            f"| {reached} | {result['parameters']:,} | {result['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"
