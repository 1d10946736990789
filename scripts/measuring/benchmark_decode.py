"""
Tokens per second while generating, against the length of what went before: both families, GPT-2 and Llama, of one
width, depth and vocabulary, with random weights.

For each length and batch the models take turns: a few rounds in which each generates `--tokens` tokens greedily from a
cache that holds that length, and that is then cut back to it. Synthesizers and the peers begin with a cache of random
states, since what it holds does not change the time; a Sinkhorn model reads its prompt.

    python -m synkhorn.scripts.benchmark decode
    python -m synkhorn.scripts.benchmark decode --lengths 512 2048 --batch_sizes 1 --models sinkhorn gpt2
"""

import json
import statistics
import subprocess
import sys
import time
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from ...configuration.configuration_synthesizer import SYNTHESIZERS
from ...families import FAMILIES
from ...modeling.rows import Rows
from .benchmark_models import entry_of
from .plots import multiples, save
from .report import about_line, machine, with_ending, write_report

PEERS = ["gpt2", "llama"]
SYNTHETIC = [name for name in SYNTHESIZERS if name != "dot_product"]
MODELS = ["sinkhorn", *SYNTHETIC, "dot_product", "dense+dot_product", *PEERS]


def parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        default=MODELS,
        help="entries of the benchmark, peers, Synthesizer members joined by +",
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192, 32768], help="tokens in the cache")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated in a round; 64 are a Sinkhorn block")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--num_hidden_layers", type=int, default=4)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_attention_heads", type=int, default=4)
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch")
    parser.add_argument(
        "--output", default="benchmarks/decoding/decode", help="path without ending of the table, JSON and plot"
    )
    parser.add_argument("--measure", nargs=2, type=int, metavar=("LENGTH", "BATCH"), help="one cell, printed as JSON")
    return parser


def build(name: str, positions: int, arguments: Namespace) -> PreTrainedModel:
    """A causal model of the sizes asked for, with random weights, in evaluation."""
    sizes = {
        "vocab_size": arguments.vocab_size,
        "hidden_size": arguments.hidden_size,
        "num_hidden_layers": arguments.num_hidden_layers,
        "num_attention_heads": arguments.num_attention_heads,
        "intermediate_size": 4 * arguments.hidden_size,
        "max_position_embeddings": positions,
    }
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    if name == "gpt2":
        config = AutoConfig.for_model("gpt2", **sizes | tokens)
    elif name == "llama":
        # as many keys as queries, and as many weights in its gated feed-forward layer as in the others'
        config = AutoConfig.for_model("llama", **sizes | tokens | {"intermediate_size": 8 * arguments.hidden_size // 3})
    else:
        model_type, own = entry_of(name)
        config = AutoConfig.for_model(model_type, **sizes, **own)
    return AutoModelForCausalLM.from_config(config).eval()


def matrix_bytes(name: str, positions: int, arguments: Namespace) -> int:
    """The memory of a model's full random matrices."""
    matrices = sum(member in ("random", "fixed_random") for member in name.split("+"))
    return 4 * matrices * arguments.num_hidden_layers * arguments.num_attention_heads * positions**2


def filled_cache(model: PreTrainedModel, length: int, batch_size: int) -> DynamicCache:
    """A cache that holds `length` tokens."""
    config = model.config
    if config.model_type in FAMILIES and config.model_type != "synthesizer":
        ids = torch.randint(0, config.vocab_size, (batch_size, length))
        return model(ids, use_cache=True, logits_to_keep=1).past_key_values
    cache = DynamicCache(config=config)
    if config.model_type == "synthesizer":
        cache.layers = [model.cache_layers[0]() for _ in cache.layers]  # type: ignore[index]
    heads = config.num_attention_heads
    states = torch.randn(batch_size, heads, length, config.hidden_size // heads)
    rows = Rows.whole((batch_size, length), states.device)
    for layer in range(config.num_hidden_layers):
        if config.model_type == "synthesizer":
            keys = states if "dot_product" in config.synthesizers else states[..., :0]
            cache.update(keys.clone(), states.clone(), layer, rows)
        else:
            cache.update(states.clone(), states.clone(), layer)
    return cache


def cache_megabytes(cache: DynamicCache) -> float:
    """The memory of a cache's tensors, with their room for later tokens."""
    found = {}
    for layer in cache.layers:
        for value in vars(layer).values():
            for tensor in value if isinstance(value, tuple) else (value,):
                if isinstance(tensor, torch.Tensor):
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values()) / 2**20


def measure(length: int, batch_size: int, arguments: Namespace) -> list[dict]:
    """Tokens per second, over the whole batch, and cache memory of every model at one length."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    positions = length + arguments.tokens
    rows: dict[str, dict] = {}
    models = {}
    for name in arguments.models:
        rows[name] = {"model": name, "length": length, "batch": batch_size}
        if matrix_bytes(name, positions, arguments) > 8 * 2**30:
            rows[name]["missing"] = f"its matrices take {matrix_bytes(name, positions, arguments) / 2**30:.0f} GB"
            continue
        models[name] = build(name, positions, arguments)
    caches = {name: filled_cache(model, length, batch_size) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(arguments.rounds + 1):
        for name, model in models.items():
            tokens = torch.randint(0, arguments.vocab_size, (batch_size, 1))
            start = time.perf_counter()
            for _ in range(arguments.tokens):
                logits = model(tokens, past_key_values=caches[name], use_cache=True).logits
                tokens = logits[:, -1].argmax(-1, keepdim=True)
            seconds[name].append(time.perf_counter() - start)
            rows[name]["cache MB"] = cache_megabytes(caches[name])
            caches[name].crop(-arguments.tokens)
    for name, times in seconds.items():
        # the first round warms up
        speeds = [batch_size * arguments.tokens / t for t in times[1:]]
        rows[name] |= {"tokens/s": statistics.median(speeds), "least": min(speeds), "most": max(speeds)}
    return list(rows.values())


def table(results: list[dict], arguments: Namespace, about: dict[str, str]) -> str:
    """The measurements as Markdown, each with its ratio to GPT-2's of the same length and batch, where there is one."""
    lines = [
        "# Tokens per second while generating",
        "",
        f"{arguments.num_hidden_layers} layers, width {arguments.hidden_size}, {arguments.num_attention_heads} heads, "
        f"vocabulary {arguments.vocab_size}, float32, {arguments.threads} thread(s), random weights. Median of "
        f"{arguments.rounds} rounds of {arguments.tokens} tokens, in which the models take turns; of the whole batch. "
        "In brackets: times the speed of `gpt2`. The cache's memory is that of its tensors.",
        "",
        about_line(about),
    ]
    found = {(row["model"], row["length"], row["batch"]): row for row in results}
    for batch_size in arguments.batch_sizes:
        lines += ["", f"## Batch {batch_size}", ""]
        for unit, cell in (("tokens/s", "{:.0f}"), ("cache MB", "{:.1f}")):
            lines += [f"| {unit} at | " + " | ".join(str(length) for length in arguments.lengths) + " |"]
            lines += ["|---|" + "---:|" * len(arguments.lengths)]
            for model in arguments.models:
                cells = []
                for length in arguments.lengths:
                    row, peer = found[model, length, batch_size], found.get(("gpt2", length, batch_size), {})
                    text = row.get("missing") or cell.format(row[unit])
                    if unit in row and unit in peer:
                        text += f" ({row[unit] / peer[unit]:.2f})"
                    cells.append(text)
                lines.append(f"| `{model}` | " + " | ".join(cells) + " |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def plot(results: list[dict], arguments: Namespace, path: Path) -> None:
    """Tokens per second against the length, one panel for each batch."""
    found = {(row["model"], row["length"], row["batch"]): row.get("tokens/s") for row in results}
    ours = [model for model in arguments.models if model not in PEERS]
    longest, batch = max(arguments.lengths), arguments.batch_sizes[-1]
    times = {
        model: found[model, longest, batch] / found["gpt2", longest, batch]
        for model in ours
        if found.get((model, longest, batch)) and found.get(("gpt2", longest, batch))
    }
    best = max(times, key=times.get) if times else ""  # type: ignore[arg-type]
    rows = {
        f"tokens per second, batch {batch_size}": {
            model: curve
            for model in arguments.models
            if (curve := {n: speed for n in arguments.lengths if (speed := found.get((model, n, batch_size)))})
        }
        for batch_size in arguments.batch_sizes
    }
    answer = (
        f"After {longest:,} tokens, batch {batch}: {best} has {times[best]:.1f} times gpt2's speed." if best else ""
    )
    save(multiples("How fast is generation after a long text?", answer, rows, ours, "tokens in the cache"), path)


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser().parse_args(argv)
    if arguments.measure:
        length, batch_size = arguments.measure
        print(json.dumps(measure(length, batch_size, arguments)))
        return
    results = []
    for batch_size, length in tqdm([(b, n) for b in arguments.batch_sizes for n in arguments.lengths]):
        cell = ["--measure", str(length), str(batch_size)]
        command = [sys.executable, "-m", "synkhorn.scripts.benchmark", "decode", *argv, *cell]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        results += json.loads(printed.splitlines()[-1])
    about = machine()
    report = table(results, arguments, about)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("measure", "output")}
    output = Path(arguments.output)
    write_report(output, report, {"machine": about, "settings": settings, "results": results})
    plot(results, arguments, with_ending(output, ".png"))
    print(report)
