"""Topics 12 and 13, the two cases: classification and generation."""

from codecs import getincrementaldecoder
from collections.abc import Callable
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..benchmarks import benchmark
from ..exhibit import Shown, Text, exhibit
from ..plots import COLOURS, interval, laid_out, lines, mean
from ..studies.language import BLOCK as WRITTEN_BLOCK
from ..studies.language import LANGUAGES, STEPS
from ..studies.language import LENGTH as WINDOW
from ..studies.reading import BLOCKS, LENGTH, document_index
from ..studies.record import load
from ..studies.tiny import encoded, tokenizer

CLASSIFIERS = {"synthesizer": ("mixture", "random", "dot_product"), "sinkhorn": ("sinkhorn", "local", "dot_product")}
WRITERS = {
    "synthesizer": ("random+dot_product", "random", "dot_product"),
    "sinkhorn": ("sinkhorn", "dot_product"),
}
SAMPLED = {"synthesizer": "random+dot_product", "sinkhorn": "sinkhorn"}
DECODED = {
    "synthesizer": ("dense", "random", "factorized_random", "dense+dot_product", "gpt2"),
    "sinkhorn": ("sinkhorn", "dot_product", "gpt2", "llama"),
}
DATA_SETS = {
    "reviews": ("IMDb reviews", "IMDb 影评"),
    "sentences": ("Rotten Tomatoes sentences", "Rotten Tomatoes 短评"),
}


def confusion(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        record = load("reading")
        run = record["runs"][CLASSIFIERS[family][0]]
        matrix = [[0, 0], [0, 0]]
        for p, y in zip(run["reviews"]["positive"], run["reviews"]["labels"], strict=True):
            matrix[y][int(p > 0.5)] += 1
        ids = encoded("test", document_index(), 1, LENGTH)["input_ids"][0]
        words = [tokenizer().decode(part[:6]).removeprefix("<s>").strip() for part in ids.split(LENGTH // BLOCKS)]
        received = [
            [sum(layer[i : i + LENGTH // BLOCKS]) / LENGTH for i in range(0, LENGTH, LENGTH // BLOCKS)]
            for layer in run["document"]["received"]
        ]
        return {"confusion": matrix, "received": received, "words": words, "about": record["about"]}

    return compute


def show_confusion(data: dict[str, Any], t: Text) -> Shown:
    matrix, received, words = data["confusion"], data["received"], data["words"]
    figure = make_subplots(
        2,
        1,
        subplot_titles=[
            t("share of the attention that each part receives", "各部分得到的注意力占比"),
            t("confusion matrix", "混淆矩阵"),
        ],
        vertical_spacing=0.22,
    )
    heat = {"texttemplate": "%{text}", "colorscale": "Blues", "showscale": False}
    layers = [t(f"layer {i}", f"第 {i} 层") for i in range(len(received))]
    text = [[f"{x:.1%}" for x in row] for row in received]
    figure.add_trace(go.Heatmap(z=received, y=layers, text=text, **heat), 1, 1)
    classes = [t("negative", "负面"), t("positive", "正面")]
    figure.add_trace(go.Heatmap(z=matrix, x=classes, y=classes, text=matrix, **heat), 2, 1)
    figure.update_xaxes(title_text=t("eighth of the review", "影评的第几个八分之一"), row=1)
    figure.update_xaxes(title_text=t("answer", "预测"), row=2)
    figure.update_yaxes(title_text=t("truth", "真实"), autorange="reversed", row=2)
    figure.update_yaxes(autorange="reversed", row=1)
    laid_out(figure, height=560)
    last = received[-1]
    parts = "".join(
        f'<mark style="background: rgba(0,114,178,{0.6 * (share - min(last)) / (max(last) - min(last)):.2f})">{escape(word)}…</mark> '
        for word, share in zip(words, last, strict=True)
    )
    most, even = max(range(len(last)), key=lambda i: last[i]), 1 / len(last)
    wrong = matrix[0][1] + matrix[1][0]
    return Shown(
        t("A long review, and what the classifier makes of it", "一条长影评，以及分类器的判断"),
        t(
            f"Which parts of a review of {LENGTH} tokens are read, and which mistakes are made? Below, the first words of "
            "each eighth: the darker, the larger its share in the last layer.",
            f"一条 {LENGTH} 个词元的影评里，哪些部分被读取？分类器犯哪种错误？下方是每个八分之一开头的词，颜色越深，在最后一层得到的注意力越多。",
        ),
        t(
            f"In the last layer the shares lie between {min(last):.1%} and {max(last):.1%} (even: {even:.1%}), highest for part {most}: the "
            f"attention is spread. {wrong} of {sum(map(sum, matrix))} reviews are judged wrongly, {matrix[0][1]} of them "
            "as too positive.",
            f"最后一层各部分占比在 {min(last):.1%} 到 {max(last):.1%} 之间（均匀为 {even:.1%}），第 {most} 部分最高：注意力是散开的。"
            f"{sum(map(sum, matrix))} 条影评中判错 {wrong} 条，其中 {matrix[0][1]} 条判得过于正面。",
        ),
        figure,
        text=f'<p class="exhibit-text">{parts}</p>',
    )


def metrics(run: dict[str, Any]) -> dict[str, Any]:
    pairs = [(p > 0.5, bool(y)) for p, y in zip(run["positive"], run["labels"], strict=True)]
    hits = sum(p == y for p, y in pairs)
    scores_of = []
    for kind in (False, True):
        both, said, are = (
            sum(x) for x in zip(*((p == y == kind, p == kind, y == kind) for p, y in pairs), strict=True)
        )
        scores_of.append(2 * both / (said + are) if said + are else 0.0)
    return {"right": hits, "count": len(pairs), "f1": mean(scores_of), "speed": run["documents per second"]}


def classified(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        record = load("reading")
        rows = {
            f"{data_set}/{name}": metrics(record["runs"][name][data_set])
            for data_set in DATA_SETS
            for name in CLASSIFIERS[family]
        }
        return {"rows": rows, "about": record["about"]}

    return compute


def show_classified(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        rows, share = [], {}
        for key, row in data["rows"].items():
            data_set, name = key.split("/")
            low, high = interval(row["right"], row["count"])
            share[key] = row["right"] / row["count"]
            rows.append(
                [
                    t(*DATA_SETS[data_set]),
                    f"`{name}`",
                    share[key],
                    f"{low:.3f} – {high:.3f}",
                    row["f1"],
                    f"{row['speed']:.0f}",
                ]
            )
        own = CLASSIFIERS[family][0]
        wilson = [
            interval(row["right"], row["count"]) for key, row in data["rows"].items() if key.startswith("reviews")
        ]
        apart = max(low for low, _ in wilson) > min(high for _, high in wilson)
        return Shown(
            t("Classification, by data set", "各数据集上的分类"),
            t(
                "How well, and how fast, do classifiers trained on reviews of up to 512 tokens work, also on sentences that "
                "they were not trained for? Macro F1, 95 % intervals, documents per second of processor time on one thread.",
                "在 512 个词元以内的影评上训练的分类器效果如何、多快？对没有训练过的短评又如何？宏平均 F1、95% 区间、单线程每秒 CPU 时间处理的文档数。",
            ),
            t(
                f"`{own}`: {share[f'reviews/{own}']:.3f} on reviews, {share[f'sentences/{own}']:.3f} on sentences of another "
                f"site. On reviews the intervals of the three models {'do not all' if apart else 'all'} overlap: "
                f"{'the attention matters' if apart else 'a difference between them is not shown'}.",
                f"`{own}`：影评 {share[f'reviews/{own}']:.3f}，另一网站的短评 {share[f'sentences/{own}']:.3f}。在影评上，三个模型的区间"
                f"{'并不全部重叠：注意力的种类有影响' if apart else '互相重叠：看不出差别'}。",
            ),
            header=[
                t("data set", "数据集"),
                t("model", "模型"),
                t("accuracy", "准确率"),
                t("95 % interval", "95% 区间"),
                "F1",
                t("documents/s", "文档/秒"),
            ],
            rows=rows,
        )

    return show


def decoded(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        record, runs = benchmark("decode"), load("language")
        series: dict[str, list[Any]] = {}
        for row in record["results"]:
            if row["model"] in DECODED[family] and "tokens/s" in row:
                series.setdefault(row["model"], []).append([row["length"], row["tokens/s"]])
        samples = {code: runs["runs"][f"{code}/{SAMPLED[family]}"] for code in LANGUAGES}
        kept = {code: {key: run[key] for key in ("ids", "fetched") if key in run} for code, run in samples.items()}
        about = record["about"] | {"text": runs["about"]["command"], "text of commit": runs["about"].get("commit", "")}
        return {"series": series, "samples": kept, "about": about}

    return compute


def marked(sample: dict[str, Any], t: Text) -> str:
    """The bytes as text, in the colour of the block that each block fetched most of."""
    data = bytes(sample["ids"])
    if "fetched" not in sample:
        return escape(data.decode(errors="replace"))
    # a character of several bytes belongs to the block in which it ends
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    parts = []
    for i, row in enumerate(sample["fetched"]):
        best = max(range(len(row)), key=lambda j, row=row: row[j])
        piece = escape(decoder.decode(data[i * WRITTEN_BLOCK : (i + 1) * WRITTEN_BLOCK]))
        colour = COLOURS[best % len(COLOURS)]
        note = "" if i == 0 else f"<sub>{t('block', '块')} {best}: {row[best]:.0%}</sub>"
        parts.append(f'<span style="border-bottom: 3px solid {"#fff" if i == 0 else colour}">{piece}</span>{note}')
    return "".join(parts)


def show_decoded(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        series = {name: tuple(zip(*row, strict=True)) for name, row in data["series"].items()}
        figure = lines(
            series, t("tokens of context", "上下文词元数"), t("tokens per second", "词元/秒"), "xy", "lines+markers"
        )
        text = "".join(f'<p class="exhibit-text">{marked(sample, t)}</p>' for sample in data["samples"].values())
        own = DECODED[family][0]
        speed = {name: dict(row) for name, row in data["series"].items()}
        longest = max(speed[own])
        ratio = speed[own][longest] / speed["gpt2"][longest]
        kept = speed[own][longest] / speed[own][min(speed[own])]
        return Shown(
            t("Generating: speed against context, and a sample", "生成：速度与上下文，以及样例"),
            t(
                "Does a longer context slow generation down? Recorded benchmark of four layers, width 256. Below, what the "
                "course's tiny byte models write after “This film is ” and “这家酒店的”"
                + ("; underlined in the colour of the block fetched." if family == "sinkhorn" else "."),
                "上下文变长，生成会变慢吗？四层、宽度 256 的基准记录。下方是课程中微型字节模型接着 “This film is ” 与“这家酒店的”写出的文字"
                + ("；下划线颜色表示取来的块。" if family == "sinkhorn" else "。"),
            ),
            t(
                f"At {longest:,} tokens `{own}` keeps {kept:.0%} of its speed at {min(speed[own]):,} and is {ratio:.1f} times as "
                f"fast as GPT-2. The samples are what {STEPS} steps of training give: letters and some words of the "
                "language, no sense.",
                f"上下文为 {longest:,} 个词元时，`{own}` 保持了 {min(speed[own]):,} 时速度的 {kept:.0%}，是 GPT-2 的 {ratio:.1f} 倍。样例只是"
                f"训练 {STEPS} 步的水平：有该语言的字符和个别词，没有意义。",
            ),
            figure,
            text=text,
        )

    return show


def written(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        record = load("language")
        kept = ("bits per byte", "bytes per character", "distinct 1", "distinct 2", "distinct 4", "bytes per second")
        rows = {
            f"{code}/{name}": {key: record["runs"][f"{code}/{name}"][key] for key in kept}
            for code in LANGUAGES
            for name in WRITERS[family]
        }
        return {"rows": rows, "about": record["about"]}

    return compute


def show_written(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        names = {"en": t("English", "英文"), "zh": t("Chinese", "中文")}
        rows = []
        for key, row in data["rows"].items():
            code, name = key.split("/")
            bits = row["bits per byte"]
            repeated = 1 - row["distinct 4"]
            cells = [bits, 2**bits, 2 ** (bits * row["bytes per character"]), row["distinct 2"], repeated]
            rows.append([names[code], f"`{name}`", *cells, f"{row['bytes per second']:.0f}"])
        best = {
            code: min(WRITERS[family], key=lambda n, c=code: data["rows"][f"{c}/{n}"]["bits per byte"])
            for code in LANGUAGES
        }
        bits = {code: data["rows"][f"{code}/{best[code]}"]["bits per byte"] for code in LANGUAGES}
        return Shown(
            t("Generation, in numbers", "生成的指标"),
            t(
                f"How well do byte models of {WINDOW} tokens, trained for {STEPS} steps, predict held-out text, and how varied is "
                "what they write? English film reviews and Chinese product reviews; perplexity by byte and by character; one sample "
                "each; bytes per second of processor time.",
                f"长度 {WINDOW}、训练 {STEPS} 步的字节模型对留出文本预测得多准，写出的文字有多少变化？英文影评与中文商品评论；按字节和按字符的困惑度；每个模型一个样例；字节/秒按 CPU 时间计。",
            ),
            t(
                f"Best: `{best['en']}` in English ({bits['en']:.2f} bits per byte), `{best['zh']}` in Chinese "
                f"({bits['zh']:.2f}). A Chinese character takes about three bytes, so compare languages by character, not "
                "by byte.",
                f"最好的：英文为 `{best['en']}`（{bits['en']:.2f} 比特/字节），中文为 `{best['zh']}`（{bits['zh']:.2f}）。一个汉字约占三个"
                "字节，跨语言比较应按字符而不是按字节。",
            ),
            header=[
                t("language", "语言"),
                t("model", "模型"),
                t("bits per byte", "比特/字节"),
                t("perplexity, byte", "困惑度（字节）"),
                t("perplexity, character", "困惑度（字符）"),
                t("distinct 2-grams", "不重复二元组"),
                t("repeated 4-grams", "重复四元组"),
                t("bytes/s", "字节/秒"),
            ],
            rows=rows,
        )

    return show


for family_name in CLASSIFIERS:
    exhibit(f"{family_name}-classification-figure", confusion(family_name))(show_confusion)
    exhibit(f"{family_name}-classification-table", classified(family_name))(show_classified(family_name))
    exhibit(f"{family_name}-generation-figure", decoded(family_name))(show_decoded(family_name))
    exhibit(f"{family_name}-generation-table", written(family_name))(show_written(family_name))
