"""Topics 8 and 9: applications, strengths and weaknesses, with what they cost."""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go

from ..benchmarks import benchmark, speeds
from ..exhibit import Shown, Text, exhibit
from ..plots import COLOURS, bars, deviation, interval, laid_out, mean
from ..studies.language import STEPS as LANGUAGE_STEPS
from ..studies.quality import PEERS
from ..studies.reading import TEST
from ..studies.record import load
from .concept import attention_parameters, one_layer
from .innovations import COMPARED, STEPS_OF, TASK_NAMES, means, recalled, score_header, score_rows, scores

READERS = {"synthesizer": ("mixture", "random", "dot_product"), "sinkhorn": ("sinkhorn", "local", "dot_product")}
BINS = (0, 150, 250, 400, 10_000)
# quality of ours -> the benchmark's entry whose time is its cost
COSTS = {
    "synthesizer": {
        name: name
        for name in ("dot_product", "dense", "random", "factorized_random", "random+dot_product", "dense+dot_product")
    },
    "sinkhorn": {"sinkhorn": "sinkhorn", "local": "sinkhorn_local", "sortcut": "sinkhorn_sortcut"},
}
COST_LENGTH = 4096


def by_length(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        record = load("reading")
        rows = {}
        for name in READERS[family]:
            run = record["runs"][name]["reviews"]
            right = [(p > 0.5) == bool(y) for p, y in zip(run["positive"], run["labels"], strict=True)]
            rows[name] = [
                [ok for ok, n in zip(right, record["runs"]["lengths"], strict=True) if low <= n < high]
                for low, high in zip(BINS, BINS[1:], strict=False)
            ]
        return {
            "right": {name: [sum(part) for part in parts] for name, parts in rows.items()},
            "count": [len(part) for part in rows[READERS[family][0]]],
            "about": record["about"],
        }

    return compute


def show_by_length(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        counts = data["count"]
        labels = [
            f"{low}–{high - 1}<br>n={n}" if high < 10_000 else f"≥ {low}<br>n={n}"
            for low, high, n in zip(BINS, BINS[1:], counts, strict=False)
        ]
        shares = {name: [r / n for r, n in zip(right, counts, strict=True)] for name, right in data["right"].items()}
        half = {
            name: [(lambda i: (i[1] - i[0]) / 2)(interval(r, n)) for r, n in zip(right, counts, strict=True)]
            for name, right in data["right"].items()
        }
        figure = bars(labels, shares, t("accuracy", "准确率"), half)
        figure.update_xaxes(title_text=t("tokens of the review", "影评的词元数"))
        figure.update_yaxes(range=[0.4, 1])
        first, (*_, last) = READERS[family][0], shares[READERS[family][0]]
        widest = max(half[first])
        gap = max(max(values) - min(values) for values in zip(*shares.values(), strict=True))
        return Shown(
            t("Accuracy by length of the document", "准确率与文档长度"),
            t(
                f"Do longer documents suffer, and does the attention matter there? {TEST} held-out reviews, cut at 512 "
                "tokens; bars with 95 % intervals.",
                f"文档越长是否越难，注意力的种类有没有影响？{TEST} 条留出的影评，截断到 512 个词元；误差线为 95% 区间。",
            ),
            t(
                f"`{first}` classifies {shares[first][0]:.0%} of the shortest and {last:.0%} of the longest reviews correctly; "
                f"the intervals are up to ±{widest:.0%} wide, and models differ by up to {gap:.0%} at one length. The outline's "
                "claim that long documents gain is not seen here: sentiment can be read from single words.",
                f"`{first}` 在最短的影评上正确率为 {shares[first][0]:.0%}，最长的为 {last:.0%}；区间宽达 ±{widest:.0%}，"
                f"同一长度档内模型之间最多相差 {gap:.0%}。大纲说长文档能提高准确率，这里看不到：情感靠个别词就能判断。",
            ),
            figure,
        )

    return show


def applications(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        data = scores(COMPARED[family], tuple(TASK_NAMES))
        runs = load("language")["runs"]
        data["bits"] = {n: runs[f"en/{n}"]["bits per byte"] for n in COMPARED[family] if f"en/{n}" in runs}
        return data

    return compute


def show_applications(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        rows = [
            [*row, data["bits"].get(name, "–")] for row, name in zip(score_rows(data), data["accuracy"], strict=True)
        ]
        by_task = {task: means(data, task) for task in TASK_NAMES}
        best = {task: max(own, key=lambda name, own=own: own[name]) for task, own in by_task.items()}
        listed = ", ".join(f"{TASK_NAMES[task][0]}: `{name}`" for task, name in best.items())
        listed_zh = "，".join(f"{TASK_NAMES[task][1]}：`{name}`" for task, name in best.items())
        lowest = min(data["bits"], key=lambda name: data["bits"][name])
        apart = max(by_task, key=lambda task: max(by_task[task].values()) - min(by_task[task].values()))
        worst = min(by_task[apart], key=lambda name: by_task[apart][name])
        several = len({*best.values(), lowest}) > 1
        steps = t(", ", "、").join(f"{STEPS_OF[task]:,}" for task in TASK_NAMES)
        return Shown(
            t("Tasks against models", "任务与模型"),
            t(
                f"Which attention for which task? Right answers (three seeds; {steps} steps of training), and bits per byte of "
                f"English language models (one seed, {LANGUAGE_STEPS:,} steps; lower is better).",
                f"什么任务该用什么注意力？正确率（三个种子，分别训练 {steps} 步），以及英文语言模型每字节的比特数（一个种子，{LANGUAGE_STEPS:,} 步，越低越好）。",
            ),
            t(
                f"Best on average: {listed}; in language modelling `{lowest}`. "
                + ("No attention is best everywhere. " if several else "")
                + f"The models differ most in {TASK_NAMES[apart][0]}, where `{worst}` gets {by_task[apart][worst]:.2f} right.",
                f"平均最好的：{listed_zh}；语言模型为 `{lowest}`。"
                + ("没有哪种注意力处处最好。" if several else "")
                + f"模型之间差距最大的任务是{TASK_NAMES[apart][1]}：`{worst}` 的正确率只有 {by_task[apart][worst]:.2f}。",
            ),
            header=[*score_header(t), t("generation, bits per byte", "生成，比特/字节")],
            rows=rows,
        )

    return show


def costs(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        names = COSTS[family] | {name: name for name in PEERS}
        data, times = scores(tuple(names), ("reviews",)), speeds("speed")
        return {
            "points": {
                name: {"accuracy": data["accuracy"][name]["reviews"], "ms": times[entry][COST_LENGTH]["ms"]}
                for name, entry in names.items()
                if entry in times and COST_LENGTH in times[entry]
            },
            "about": data["about"] | {"cost": benchmark("speed")["about"]["command"]},
        }

    return compute


def show_costs(data: dict[str, Any], t: Text) -> Shown:
    points = data["points"]
    figure = go.Figure()
    for index, (name, point) in enumerate(points.items()):
        figure.add_trace(
            go.Scatter(
                x=[point["ms"]],
                y=[mean(point["accuracy"])],
                error_y={"type": "data", "array": [deviation(point["accuracy"])]},
                mode="markers",
                name=name,
                marker={"size": 11, "color": COLOURS[index % len(COLOURS)]},
            )
        )
    figure.update_xaxes(
        type="log", title_text=t(f"milliseconds at {COST_LENGTH:,} tokens", f"{COST_LENGTH:,} 个词元时的毫秒数")
    )
    figure.update_yaxes(title_text=t("accuracy on reviews", "影评准确率"))
    laid_out(figure, height=520).update_layout(legend={"y": 1.02, "yanchor": "bottom"})
    slow = max(points, key=lambda name: points[name]["ms"])
    floor = points["floor"]
    ours = [name for name in points if name not in PEERS]
    fast = min(ours, key=lambda name: points[name]["ms"])
    best = max(points, key=lambda name: mean(points[name]["accuracy"]))
    least, most = (mean(points[name]["accuracy"]) for name in ("floor", best))
    return Shown(
        t("Quality against cost", "质量与开销"),
        t(
            "What is paid for what? Accuracy of tiny models (three seeds) against the recorded time of a forward pass of "
            "models of four layers, width 256. The floor has no attention at all.",
            "花多少，得多少？微型模型的准确率（三个种子）与四层、宽度 256 模型前向计算的记录时间。floor 完全没有注意力。",
        ),
        t(
            f"Of ours `{fast}` is fastest ({points[fast]['ms']:.0f} ms, floor {floor['ms']:.0f} ms), `{slow}` is slowest of all "
            f"({points[slow]['ms']:.0f} ms). Without any attention the floor reaches {least:.3f}, the best, `{best}`, {most:.3f}: "
            f"on this task an attention adds {most - least:.3f}, so cost decides.",
            f"我们的模型中 `{fast}` 最快（{points[fast]['ms']:.0f} 毫秒，floor 为 {floor['ms']:.0f} 毫秒），最慢的是 `{slow}`"
            f"（{points[slow]['ms']:.0f} 毫秒）。完全没有注意力的 floor 也有 {least:.3f}，最好的 `{best}` 为 {most:.3f}：在这个任务上注意力只带来 "
            f"{most - least:.3f}，该看的是开销。",
        ),
        figure,
    )


def decoding(model: str, what: str, length: int) -> float:
    return next(r for r in benchmark("decode")["results"] if r["model"] == model and r["length"] == length)[what]


def synthesizer_balance() -> dict[str, Any]:
    times = speeds("speed")
    size = [attention_parameters(one_layer("random", n)) for n in (512, 2048)]
    return {
        "cache": decoding("dense", "cache MB", 8192) / decoding("gpt2", "cache MB", 8192),
        "decode": decoding("random", "tokens/s", 8192) / decoding("gpt2", "tokens/s", 8192),
        "faster": times["bert"][4096]["ms"] / times["random"][4096]["ms"],
        "growth": times["dense"][4096]["ms"] / times["dense"][2048]["ms"],
        "recall": recalled("dense", "random", "dot product"),
        "size": size,
    }


def show_synthesizer_balance(data: dict[str, Any], t: Text) -> Shown:
    plus, minus = t("strength", "优点"), t("weakness", "缺点")
    rows = [
        [
            plus,
            t("no keys in the cache (dense, 8,192 tokens)", "缓存中没有键（dense，8,192 个词元）"),
            t(f"{data['cache']:.2f} of GPT-2's memory", f"GPT-2 内存的 {data['cache']:.2f} 倍"),
        ],
        [
            plus,
            t("tokens per second while generating (random, 8,192)", "生成速度（random，8,192）"),
            t(f"{data['decode']:.2f} times GPT-2's", f"GPT-2 的 {data['decode']:.2f} 倍"),
        ],
        [
            plus,
            t("forward pass of 4,096 tokens (random)", "4,096 个词元的前向计算（random）"),
            t(f"{data['faster']:.2f} times as fast as BERT", f"BERT 速度的 {data['faster']:.2f} 倍"),
        ],
        [
            minus,
            t("time when the length doubles (dense, 2,048 to 4,096)", "长度翻倍时的时间（dense，2,048 到 4,096）"),
            t(f"{data['growth']:.2f} times", f"{data['growth']:.2f} 倍"),
        ],
        [
            minus,
            t(
                "does not compare tokens: values found by their keys, dense, random, dot product",
                "不比较词元：按键找值的正确率，dense、random、点积",
            ),
            ", ".join(f"{x:.2f}" for x in data["recall"].values()),
        ],
        [
            minus,
            t("parameters of random in one layer, 512 and 2,048 tokens", "random 一层的参数量，512 与 2,048 个词元"),
            f"{data['size'][0]:,}, {data['size'][1]:,}",
        ],
    ]
    return balance(t, rows)


def sinkhorn_balance() -> dict[str, Any]:
    times, growth = speeds("speed"), speeds("speed-growth")
    runs = load("balancing")["runs"]
    return {
        "faster": times["bert"][4096]["ms"] / times["sinkhorn"][4096]["ms"],
        "growth": growth["sinkhorn"][32768]["ms"] / growth["sinkhorn"][16384]["ms"],
        "decode": decoding("sinkhorn", "tokens/s", 32768) / decoding("gpt2", "tokens/s", 32768),
        "cache": decoding("sinkhorn", "cache MB", 8192) / decoding("gpt2", "cache MB", 8192),
        "causal": [runs[f"copy/{name}/0.75"]["accuracy"] for name in ("softmax", "sinkhorn 7")],
        "recall": recalled("Sinkhorn", "dot product"),
        "size": [attention_parameters(one_layer("sinkhorn", n)) for n in (512, 2048)],
    }


def show_sinkhorn_balance(data: dict[str, Any], t: Text) -> Shown:
    plus, minus = t("strength", "优点"), t("weakness", "缺点")
    rows = [
        [
            plus,
            t("forward pass of 4,096 tokens", "4,096 个词元的前向计算"),
            t(f"{data['faster']:.2f} times as fast as BERT", f"BERT 速度的 {data['faster']:.2f} 倍"),
        ],
        [
            plus,
            t("time when the length doubles (16,384 to 32,768)", "长度翻倍时的时间（16,384 到 32,768）"),
            t(f"{data['growth']:.2f} times", f"{data['growth']:.2f} 倍"),
        ],
        [
            plus,
            t("tokens per second while generating, 32,768 tokens of context", "上下文为 32,768 个词元时的生成速度"),
            t(f"{data['decode']:.1f} times GPT-2's", f"GPT-2 的 {data['decode']:.1f} 倍"),
        ],
        [
            minus,
            t("memory of the cache, 8,192 tokens", "缓存内存，8,192 个词元"),
            t(f"{data['cache']:.2f} of GPT-2's", f"GPT-2 的 {data['cache']:.2f} 倍"),
        ],
        [
            minus,
            t(
                "causal copying, rows only and with seven balancing iterations",
                "因果复制：只归一化行，与 7 次双随机迭代",
            ),
            f"{data['causal'][0]:.2f}, {data['causal'][1]:.2f}",
        ],
        [
            minus,
            t(
                "moves whole blocks: values found by their keys, Sinkhorn, dot product",
                "只能搬动整块：按键找值的正确率，Sinkhorn 与点积",
            ),
            ", ".join(f"{x:.2f}" for x in data["recall"].values()),
        ],
        [
            minus,
            t(
                "the linear sort net grows with the length: parameters of a layer, 512 and 2,048",
                "线性排序网络随长度增长：一层参数量，512 与 2,048",
            ),
            f"{data['size'][0]:,}, {data['size'][1]:,}",
        ],
    ]
    return balance(t, rows)


def balance(t: Text, rows: list[list[Any]]) -> Shown:
    plus = sum(row[0] == rows[0][0] for row in rows)
    return Shown(
        t("Strengths and weaknesses, each with its number", "优缺点，各附数字"),
        t(
            "Which number proves each? From the recorded benchmarks (speed, decode, associative_recall) and from the studies "
            "of this course.",
            "每一条由哪个数字证明？数字来自仓库的基准记录（speed、decode、associative_recall）和本课程的实验。",
        ),
        t(
            f"{plus} strengths concern cost, {len(rows) - plus} weaknesses what can be learned or what it ties down. The "
            "outline's “efficient for long documents” needs the family and the length beside it.",
            f"{plus} 条优点都关于开销，{len(rows) - plus} 条缺点关于学得会什么、受什么限制。大纲中的“高效处理长文档”必须注明是哪个家族、"
            "多长的文本。",
        ),
        header=[t("kind", "类别"), t("what", "内容"), t("number", "数字")],
        rows=rows,
    )


for family_name in COMPARED:
    exhibit(f"{family_name}-applications-figure", by_length(family_name))(show_by_length(family_name))
    exhibit(f"{family_name}-applications-table", applications(family_name))(show_applications(family_name))
    exhibit(f"{family_name}-strengths-figure", costs(family_name))(show_costs)
exhibit("synthesizer-strengths-table", synthesizer_balance)(show_synthesizer_balance)
exhibit("sinkhorn-strengths-table", sinkhorn_balance)(show_sinkhorn_balance)
