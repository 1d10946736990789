"""Topics 6 and 7: ways to train, and the settings of the optimiser."""

from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..benchmarks import benchmark
from ..exhibit import Shown, Text, exhibit
from ..plots import deviation, interval, laid_out, lines, mean
from ..studies.record import load
from ..studies.settings import (
    CHOICE_SEEDS,
    CHOICES,
    CHOSEN,
    CLIPS,
    LABELLED,
    PRETRAINING,
    RATED,
    RATES,
    STARTS,
    SUBJECTS,
    WATCHED,
)

START_NAMES = {
    "scratch": ("from scratch", "从零开始"),
    "masked": ("after masked pre-training", "掩码预训练之后"),
    "causal": ("after causal pre-training", "因果预训练之后"),
    "warm": ("with a warm start from a BERT of the same size", "从同尺寸的 BERT 热启动"),
}
CHOICE_NAMES = {
    "base": ("base", "基准"),
    "no warm-up": ("no warm-up", "不预热"),
    "constant rate": ("constant rate", "恒定学习率"),
    "no clipping": ("no clipping", "不裁剪梯度"),
    "no weight decay": ("no weight decay", "无权重衰减"),
    "dropout 0.1": ("dropout 0.1", "dropout 0.1"),
    "schedule constant": ("constant rate", "恒定学习率"),
    "schedule no warm-up": ("no warm-up", "不预热"),
    "schedule cosine": ("cosine schedule", "余弦调度"),
    "clipping off": ("no clipping", "不裁剪梯度"),
    "weight decay off": ("no weight decay", "无权重衰减"),
    "weight decay strong": ("strong weight decay", "强权重衰减"),
    "dropout off": ("no dropout", "无 dropout"),
    "pre-training masked": ("masked pre-training", "掩码预训练"),
    "pre-training causal": ("causal pre-training", "因果预训练"),
}
WINDOW = 10


def smooth(values: list[float]) -> list[float]:
    return [mean(values[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(values))]


def starts(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        record = load("starts")
        return {"runs": {s: record["runs"][f"{family}/{s}"] for s in STARTS}, "about": record["about"]}

    return compute


def show_curves(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        curves = {}
        for start, run in data["runs"].items():
            losses = smooth(run["loss"])
            curves[t(*START_NAMES[start])] = (list(range(1, len(losses) + 1)), losses)
        figure = lines(curves, t("step", "步"), t("loss", "损失"))
        last = {start: smooth(run["loss"])[-1] for start, run in data["runs"].items()}
        best = min(last, key=lambda start: last[start])
        beside = max(last, key=lambda start: last[start]) if best == "scratch" else "scratch"
        return Shown(
            t("Four ways to begin", "四种起点"),
            t(
                f"Does it matter what the weights have learned before? Loss of {SUBJECTS[family]} on {LABELLED:,} "
                f"labelled reviews, mean of the last {WINDOW} steps.",
                f"权重事先学过什么有多重要？{SUBJECTS[family]} 在 {LABELLED:,} 条有标注影评上的训练损失，取最近 {WINDOW} 步的平均。",
            ),
            t(
                f"The training loss ends lowest {START_NAMES[best][0]} ({last[best]:.2f}); {START_NAMES[beside][0]} it ends at "
                f"{last[beside]:.2f}. {PRETRAINING} steps of pre-training are few: a better start shows only after more. The outline names autoregressive training only; an encoder is trained on masked tokens, and "
                "both families can begin with the weights of an existing model.",
                f"训练损失最低的是“{START_NAMES[best][1]}”（{last[best]:.2f}），“{START_NAMES[beside][1]}”为 {last[beside]:.2f}。预训练只有 "
                f"{PRETRAINING} 步，太短，还看不出更好的起点。大纲只提到自回归训练；"
                "编码器用掩码词元训练，两个家族也都可以沿用已有模型的权重。",
            ),
            figure,
        )

    return show


def show_starts(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        rows, ends = [], {}
        for start, run in data["runs"].items():
            low, high = interval(round(run["accuracy"] * run["tested"]), run["tested"])
            ends[start] = low, high
            rows.append([t(*START_NAMES[start]), f"{run['accuracy']:.3f}", f"{low:.3f} – {high:.3f}"])
        best = max(data["runs"], key=lambda start: data["runs"][start]["accuracy"])
        apart = ends[best][0] > ends["scratch"][1]
        tested = data["runs"]["scratch"]["tested"]
        return Shown(
            t("Ways of training on one held-out set", "同一留出集上的训练方式"),
            t(
                f"How many of {tested:,} held-out reviews does each way classify correctly? Wilson's 95 % intervals, one "
                "seed.",
                f"在 {tested:,} 条留出的影评上，每种方式的正确率是多少？Wilson 95% 置信区间，一个种子。",
            ),
            t(
                f"Best: {START_NAMES[best][0]}, {data['runs'][best]['accuracy']:.3f}. Its interval "
                f"{'does not overlap' if apart else 'overlaps'} that of training from scratch. The pre-trainings here last "
                f"{PRETRAINING} steps; the repository's records hold longer ones (`benchmarks`, pretraining.md and warm_start.md).",
                f"最好的是“{START_NAMES[best][1]}”，{data['runs'][best]['accuracy']:.3f}；其区间与从零开始的区间"
                f"{'不重叠' if apart else '重叠'}。这里的预训练只有 {PRETRAINING} 步；更长的预训练见仓库记录（`benchmarks` 中的 "
                "pretraining.md 与 warm_start.md）。",
            ),
            header=[t("start", "起点"), t("accuracy", "准确率"), t("95 % interval", "95% 区间")],
            rows=rows,
        )

    return show


def rates(family: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        record = load("rates")
        runs = {k.removeprefix(f"{family}/"): v for k, v in record["runs"].items() if k.startswith(f"{family}/")}
        norms = runs[f"{RATES[1]}/1.0"]["watched norm"], runs[f"{RATES[1]}/1.0"]["gradient norm"]
        losses = {name: mean(run["loss"][-20:]) for name, run in runs.items()}
        return {"losses": losses, "watched": norms[0], "all": norms[1], "about": record["about"]}

    return compute


def show_rates(family: str) -> Callable[[dict[str, Any], Text], Shown]:
    def show(data: dict[str, Any], t: Text) -> Shown:
        own, words = (
            WATCHED[family],
            {"sort": ("sort net", "排序网络"), "members": ("synthesised logits", "合成 logit 部分")},
        )
        losses = [[data["losses"][f"{rate}/{clip}"] for rate in RATES] for clip in CLIPS]
        figure = make_subplots(
            2,
            1,
            subplot_titles=[
                t("training loss at the end", "训练结束时的损失"),
                t("gradient norm by step", "各步的梯度范数"),
            ],
            vertical_spacing=0.2,
        )
        figure.add_trace(
            go.Heatmap(
                z=losses,
                x=[f"{rate:g}" for rate in RATES],
                y=[t("off", "不裁剪") if clip is None else f"{clip:g}" for clip in CLIPS],
                text=[[f"{x:.3f}" for x in row] for row in losses],
                texttemplate="%{text}",
                colorscale="Viridis_r",
                showscale=False,
            ),
            1,
            1,
        )
        figure.update_xaxes(type="category", title_text=t("learning rate", "学习率"), row=1)
        figure.update_yaxes(type="category", title_text=t("clipping", "裁剪阈值"), row=1)
        for name, norms in ((t(*words[own]), data["watched"]), (t("all parameters", "全部参数"), data["all"])):
            figure.add_trace(go.Scatter(y=norms, name=name, mode="lines"), 2, 1)
        figure.update_yaxes(type="log", dtick=1, row=2)
        figure.update_xaxes(title_text=t("step", "步"), row=2)
        laid_out(figure, height=560)
        figure.update_layout(legend={"y": -0.08})
        best = min(data["losses"], key=lambda name: data["losses"][name])
        rate, clip = best.split("/")
        by_rate = [mean([data["losses"][f"{rate}/{clip}"] for clip in CLIPS]) for rate in RATES]
        by_clip = [mean([data["losses"][f"{rate}/{clip}"] for rate in RATES]) for clip in CLIPS]
        moved = [max(x) - min(x) for x in (by_rate, by_clip)]
        share = mean([a / b for a, b in zip(data["watched"], data["all"], strict=True)])
        return Shown(
            t("Learning rate against clipping", "学习率与梯度裁剪"),
            t(
                f"Which pair trains fastest, and how large are the gradients of the {words[own][0]}? {RATED} steps each.",
                f"哪一组合训练得最快？{words[own][1]}的梯度有多大？各训练 {RATED} 步。",
            ),
            t(
                f"Lowest loss at rate {rate} with clipping {'off' if clip == 'None' else clip} ({data['losses'][best]:.3f}). "
                f"Averaged over the other setting, the rate moves the loss by {moved[0]:.3f}, the clipping by {moved[1]:.3f}. "
                f"The norm of the gradient of the {words[own][0]} is {share:.1%} of the whole on average.",
                f"损失最低的是学习率 {rate}、裁剪{'关闭' if clip == 'None' else '阈值 ' + clip}（{data['losses'][best]:.3f}）。"
                f"对另一设置取平均后，学习率使损失变化 {moved[0]:.3f}，裁剪使损失变化 {moved[1]:.3f}。"
                f"{words[own][1]}的梯度范数平均为全部参数的 {share:.1%}。",
            ),
            figure,
        )

    return show


def choices() -> dict[str, Any]:
    record = load("choices")
    table = {
        name: {
            "accuracy": [record["runs"][f"{name}/{seed}"]["accuracy"] for seed in range(CHOICE_SEEDS)],
            "loss": [record["runs"][f"{name}/{seed}"]["loss"] for seed in range(CHOICE_SEEDS)],
        }
        for name in CHOICES
    }
    return {"table": table, "steps": CHOSEN, "about": record["about"]}


def ablation() -> dict[str, Any]:
    record = benchmark("ablation")
    table = {
        " ".join(filter(None, (row["factor"], row["setting"]))): {
            "accuracy": row["accuracy"],
            "loss": row["training_loss"],
        }
        for row in record["results"]
    }
    return {"table": table, "about": record["about"]}


def show_choices(data: dict[str, Any], t: Text) -> Shown:
    table = data["table"]
    base = table["base"]["accuracy"]
    rows, sure = [], []
    for name, row in table.items():
        differences = [a - b for a, b in zip(row["accuracy"], base, strict=True)]
        if name != "base" and (min(differences) > 0 or max(differences) < 0):
            sure.append(name)
        rows.append(
            [
                t(*CHOICE_NAMES.get(name, (name, name))),
                f"{mean(row['accuracy']):.3f} ± {deviation(row['accuracy']):.3f}",
                "–"
                if name == "base"
                else f"{mean(differences):+.3f} ({min(differences):+.3f} – {max(differences):+.3f})",
                f"{mean(row['loss']):.3f}",
            ]
        )
    seeds = len(base)
    found = ", ".join(CHOICE_NAMES.get(name, (name, name))[0] for name in sure)
    found_zh = "、".join(t(*CHOICE_NAMES.get(name, (name, name))) for name in sure)
    return Shown(
        t("The ablation", "消融实验"),
        t(
            f"Which choice changes the result in every one of {seeds} seeds? Held-out accuracy on reviews, one choice "
            "changed at a time" + (f", {data['steps']} steps." if "steps" in data else "."),
            f"哪些选择在全部 {seeds} 个种子上都朝同一方向改变结果？影评留出集准确率，每次只改一项"
            + (f"，训练 {data['steps']} 步。" if "steps" in data else "。"),
        ),
        t(
            f"On one side of the base in all seeds: {found or 'none'}. With {seeds} seeds a setting that does nothing does "
            f"so in {2 * 0.5**seeds:.0%} of such tables, so that only differences beyond the spread mean anything.",
            f"在所有种子上都偏向同一侧的有：{found_zh or '无'}。种子只有 {seeds} 个，毫无作用的设置也有 {2 * 0.5**seeds:.0%} 的机会如此，"
            "所以只有明显超出波动的差异才有意义。",
        ),
        header=[
            t("choice", "选择"),
            t("accuracy", "准确率"),
            t("against the base", "与基准之差"),
            t("training loss", "训练损失"),
        ],
        rows=rows,
    )


for family_name in SUBJECTS:
    exhibit(f"{family_name}-training-figure", starts(family_name))(show_curves(family_name))
    exhibit(f"{family_name}-training-table", starts(family_name))(show_starts(family_name))
    exhibit(f"{family_name}-optimisation-figure", rates(family_name))(show_rates(family_name))
exhibit("synthesizer-optimisation-table", choices)(show_choices)
exhibit("sinkhorn-optimisation-table", ablation)(show_choices)
