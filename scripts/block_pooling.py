"""
How a block becomes one vector, and what follows for its sort: for each `block_pooling` the spread of the sort's logits,
the balance of its matrices and the error of bfloat16 in new models, and the accuracy of trained ones on the tasks of
`train_synthetic`, means over seeds. What its JSON holds already is not trained again, so that a command can be repeated
after an interruption, or another can add to it:

    python -m synkhorn.scripts.block_pooling --tasks sort
    python -m synkhorn.scripts.block_pooling --tasks copy --trained_block_sizes 8 32
    python -m synkhorn.scripts.block_pooling --tasks copy --trained_block_sizes 64 --steps 500 --eval_every 100
"""

import json
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path
from statistics import mean

import torch
from torch import nn

from synkhorn import SinkhornConfig, SinkhornModel, SynthesizerConfig, SynthesizerModel
from synkhorn.configuration.configuration_sinkhorn import BLOCK_POOLINGS
from synkhorn.modeling.modeling_sinkhorn import SORT_NETS

from .measuring.report import about_line, machine, write_report
from .training import synthetic

VOCABULARY = 8192
DIRECTIONS = {"both": False, "causal": True}
# what all runs of one record have in common
SHARED = ("poolings", "hidden_size", "lengths", "block_sizes", "num_blocks", "distance", "batch_size", "eval_size")


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--poolings", nargs="+", choices=BLOCK_POOLINGS, default=list(BLOCK_POOLINGS))
    parser.add_argument("--hidden_size", type=int, default=256, help="width of the new models")
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 4096], help="tokens that new models read")
    parser.add_argument("--block_sizes", nargs="+", type=int, default=[8, 32, 64, 256], help="blocks of new models")
    parser.add_argument("--tasks", nargs="*", choices=["copy", "sort"], default=["copy", "sort"])
    parser.add_argument("--trained_block_sizes", nargs="+", type=int, default=[8, 32, 64])
    parser.add_argument("--num_blocks", type=int, default=4, help="blocks of a sequence in training")
    parser.add_argument("--distance", type=int, default=2, help="how many blocks later a block is to be copied")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=250, help="batches that each model is trained on")
    parser.add_argument("--eval_every", type=int, default=50, help="steps between two measurements")
    parser.add_argument("--eval_size", type=int, default=128, help="fresh sequences of each measurement")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", default="benchmarks/sinkhorn/block_pooling", help="path without ending of the files")
    return parser


def sizes(arguments: Namespace, length: int) -> dict:
    """What the new models have in common."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 4 * arguments.hidden_size,
        "max_position_embeddings": length,
        "pad_token_id": None,
    }


@torch.no_grad()
def relative_error(model: nn.Module, ids: torch.Tensor) -> float:
    """Root mean square error of `model` in bfloat16 over that of its outputs in float32."""
    exact = model.float()(ids).last_hidden_state
    rounded = model.to(torch.bfloat16)(ids).last_hidden_state
    return ((rounded.float() - exact).square().mean() / exact.square().mean()).sqrt().item()


@torch.no_grad()
def start(pooling: str, sort_net: str, block_size: int, length: int, is_causal: bool, arguments: Namespace) -> dict:
    """
    A new model that reads random tokens.

    Returns:
        `spread`: standard deviation of the logits that a row of the sort chooses by, mean over rows, heads, layers.
        `residual`: how far the columns of the sort matrices are from 1, the largest; bidirectional models only.
        `bfloat16`: `relative_error` at the shortest length.
    """
    torch.manual_seed(arguments.seeds[0])
    config = SinkhornConfig(
        block_size=block_size,
        block_pooling=pooling,
        sort_net=sort_net,
        is_causal=is_causal,
        **sizes(arguments, length),
    )
    model = SinkhornModel(config).eval()
    ids = torch.randint(VOCABULARY, (2, length))
    logits: list[torch.Tensor] = []
    hooks = [
        net.register_forward_hook(lambda module, inputs, output: logits.append(output))
        for net in model.modules()
        if type(net) in SORT_NETS.values()
    ]
    outputs = model(ids, output_sort_residuals=True)
    for hook in hooks:
        hook.remove()
    rows = torch.stack(logits).flatten(0, -3)  # (layers x batch x heads, n, n)
    n = rows.shape[-1]
    choices = [(i, i if is_causal else n) for i in range(n)]
    spreads = [rows[:, i, :count].std(-1).mean().item() for i, count in choices if count > 1]
    return {
        "spread": mean(spreads) if spreads else None,
        "residual": None if is_causal else torch.stack(outputs.sort_residuals).max().item(),
        "bfloat16": relative_error(model, ids) if length == min(arguments.lengths) else None,
    }


def starts(arguments: Namespace) -> list[dict]:
    """`start` of each pooling, sort net, block size, length and direction."""
    return [
        {"pooling": pooling, "sort_net": sort_net, "block_size": block_size, "length": length, "direction": direction}
        | start(pooling, sort_net, block_size, length, is_causal, arguments)
        for sort_net in SORT_NETS
        for direction, is_causal in DIRECTIONS.items()
        for pooling in arguments.poolings
        for block_size in arguments.block_sizes
        for length in arguments.lengths
    ]


def dot_product_error(arguments: Namespace, is_causal: bool) -> float:
    """`relative_error` of full dot-product attention, BERT or GPT-2, in the same sizes."""
    torch.manual_seed(arguments.seeds[0])
    length = min(arguments.lengths)
    config = SynthesizerConfig(synthesizers=["dot_product"], is_causal=is_causal, **sizes(arguments, length))
    return relative_error(SynthesizerModel(config).eval(), torch.randint(VOCABULARY, (2, length)))


def train(task: str, block_size: int, pooling: str, seed: int, arguments: Namespace) -> dict:
    """One run of `train_synthetic`: accuracy by steps."""
    words = {
        "block_size": block_size,
        "seed": seed,
        "threads": 1,
        **{name: getattr(arguments, name) for name in ("batch_size", "steps", "eval_every", "eval_size")},
    }
    if task == "copy":
        words |= {"num_blocks": arguments.num_blocks, "distance": arguments.distance}
    else:
        words["length"] = arguments.num_blocks * block_size
    settings = synthetic.parser().parse_args([task, *(f"--{name}={value}" for name, value in words.items())])
    name = f"{task} {block_size} {pooling} {seed}"
    of_task = synthetic.task_of(settings)._replace(models={name: {"block_pooling": pooling}})
    points = synthetic.train(name, of_task, settings)["points"]
    accuracy = {str(point["step"]): round(point["accuracy"], 4) for point in points}
    return {
        "task": task,
        "block_size": block_size,
        "steps": arguments.steps,
        "pooling": pooling,
        "seed": seed,
        "accuracy": accuracy,
    }


def start_tables(figures: list[dict], errors: dict[str, float], arguments: Namespace) -> list[str]:
    """Spread, residual and error of new models as Markdown."""
    columns = [(size, length) for length in arguments.lengths for size in arguments.block_sizes]
    titles = {
        "spread": "Standard deviation of the logits that a row of the sort chooses by",
        "residual": "Largest |column sum - 1| of the sort matrices (bidirectional)",
        "bfloat16": "Error of bfloat16 over that of full dot-product attention in the same sizes",
    }
    lines = []
    for quantity, title in titles.items():
        kept = columns if quantity != "bfloat16" else [pair for pair in columns if pair[1] == min(arguments.lengths)]
        head = " | ".join(f"{size} of {length:,}" for size, length in kept)
        lines += ["", f"## {title}", "", f"Block size of length; {arguments.hidden_size} wide.", ""]
        lines += [f"| sort net | pooling | {head} |", "|---|---|" + "---:|" * len(kept)]
        for sort_net in SORT_NETS:
            for direction in DIRECTIONS if quantity != "residual" else ["both"]:
                for pooling in arguments.poolings:
                    row = {
                        (figure["block_size"], figure["length"]): figure[quantity]
                        for figure in figures
                        if (figure["sort_net"], figure["direction"], figure["pooling"])
                        == (sort_net, direction, pooling)
                    }
                    scale = errors[direction] if quantity == "bfloat16" else 1.0
                    cells = ["" if row[pair] is None else f"{row[pair] / scale:.2f}" for pair in kept]
                    name = f"{sort_net}, causal" if direction == "causal" else sort_net
                    lines.append(f"| {name} | `{pooling}` | " + " | ".join(cells) + " |")
    return lines


def training_tables(runs: list[dict], arguments: Namespace) -> list[str]:
    """Accuracy by steps, means over seeds, as Markdown."""
    lines = []
    titles = {"copy": f"Copy the block {arguments.distance} blocks before, causal", "sort": "Sort, bidirectional"}
    for task, block_size, steps in sorted({(run["task"], run["block_size"], run["steps"]) for run in runs}):
        lines += ["", f"## {titles[task]}: blocks of {block_size}, {steps} steps", ""]
        head: list[str] = []
        for pooling in BLOCK_POOLINGS:
            key = (task, block_size, steps, pooling)
            own = [run for run in runs if (run["task"], run["block_size"], run["steps"], run["pooling"]) == key]
            if not own:
                continue
            if not head:
                head = list(own[0]["accuracy"])[1:]
                lines += [f"| pooling | seeds | {' | '.join(head)} |", "|---|---:|" + "---:|" * len(head)]
            values = [[run["accuracy"][step] for run in own] for step in head]
            cells = [f"{mean(x):.3f} ({min(x):.2f} to {max(x):.2f})" for x in values]
            lines.append(f"| `{pooling}` | {len(own)} | " + " | ".join(cells) + " |")
    return lines


def report(figures: dict, arguments: Namespace) -> str:
    """All tables as Markdown."""
    lines = [
        "# Pooling of blocks",
        "",
        "New models of 2 layers and 4 heads read random tokens. Trained ones are those of `train_synthetic`: 2 layers, "
        f"width 64, 4 heads, linear sort net; {arguments.num_blocks} blocks, batches of {arguments.batch_size}; "
        f"accuracy on {arguments.eval_size} fresh sequences after so many steps, mean over seeds (lowest to highest).",
        "",
        about_line(figures["machine"]),
        *start_tables(figures["start"], figures["dot product"], arguments),
        *training_tables(figures["runs"], arguments),
    ]
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> dict:
    """Measure new models, train, write the tables and JSON, and return the figures."""
    arguments = parser().parse_args(args)
    torch.set_num_threads(1)
    output = Path(arguments.output)
    settings = {name: getattr(arguments, name) for name in SHARED}
    figures: dict = {"settings": settings, "start": [], "runs": []}
    if output.with_suffix(".json").exists():
        figures = json.loads(output.with_suffix(".json").read_text())
        if figures["settings"] != settings:
            raise ValueError(f"output={arguments.output} holds runs of other settings: choose another --output")
    figures["machine"] = machine()
    if not figures["start"]:
        figures["dot product"] = {name: dot_product_error(arguments, causal) for name, causal in DIRECTIONS.items()}
        figures["start"] = starts(arguments)
    write_report(output, report(figures, arguments), figures)
    done = [(run["task"], run["block_size"], run["steps"], run["pooling"], run["seed"]) for run in figures["runs"]]
    for task in arguments.tasks:
        for block_size in arguments.trained_block_sizes:
            for seed in arguments.seeds:
                for pooling in arguments.poolings:
                    if (task, block_size, arguments.steps, pooling, seed) not in done:
                        figures["runs"].append(train(task, block_size, pooling, seed, arguments))
                        write_report(output, report(figures, arguments), figures)
    print(report(figures, arguments))
    return figures


if __name__ == "__main__":
    main()
