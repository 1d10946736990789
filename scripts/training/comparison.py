"""The engine of `compare`: trains each entrant with each rate and seed, once, and tests the one that validates best."""

import gc
import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

import synkhorn
from synkhorn.hub_export import write_whole

from ..common.comparison_spec import ComparisonSpec, expect
from ..common.precision import device_type
from ..measuring.comparison_report import report
from ..measuring.memory import forget_peak, give_back, resident_megabytes
from ..measuring.report import with_ending
from ..measuring.sort_statistics import sort_statistics
from .entrants import RECORD, Entrants, own_fields, slug
from .linear_classifiers import is_linear, mean_states, of_states, of_words
from .runs import (
    check_same_run,
    checkpoint_to_resume,
    explained_when_the_disk_is_full,
    finish,
    results_of,
    settings_of,
    train_to_the_end,
)
from .synthetic_experiments import Drawn

COMMAND = "compare"
# steps by which a budget of seconds is turned into steps, and those of them that do not count
CALIBRATION, WARMING = 8, 3


class Cost(TrainerCallback):
    """Adds to the Trainer's log what its steps have cost so far: seconds, of the CPU where that trains, and memory."""

    def __init__(self):
        self.seconds, self.before = 0.0, 0.0
        self.is_cpu = device_type() == "cpu"

    def clock(self) -> float:
        if self.is_cpu:
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs):
        # a run that resumes goes on counting
        self.seconds = next((entry["seconds"] for entry in reversed(state.log_history) if "seconds" in entry), 0.0)
        if self.is_cpu:
            # freed memory of the training before would hide this one's
            gc.collect()
            give_back()
            forget_peak()
            self.before = resident_megabytes("VmRSS")

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = self.clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += self.clock() - self.start

    def on_log(self, args, state, control, **kwargs):
        peak = resident_megabytes("VmHWM") - self.before if self.is_cpu else torch.cuda.max_memory_allocated() / 2**20
        state.log_history[-1] |= {"seconds": self.seconds, "peak_megabytes": peak}


class Comparison(Entrants):
    """The cells of a comparison, see `Entrants`."""

    def __init__(self, spec: ComparisonSpec, folder: Path, data_dir: str | None):
        super().__init__(spec, folder, data_dir)
        # entrant and the checkpoint it starts from -> text -> what its frozen model makes of it
        self.known_states: dict[tuple[str, str | None], dict[str, np.ndarray]] = {}
        self.seconds_of_text: dict[str, float] = {}

    def training_of(self, name: str) -> dict[str, Any]:
        """The Trainer's arguments of an entrant, but for those that differ between its cells."""
        return self.training | self.spec.entrants[name].get("training", {})

    def batch_size(self, name: str) -> int:
        """Rows of a training step."""
        training = self.training_of(name)
        return training["per_device_train_batch_size"] * training.get("gradient_accumulation_steps", 1)

    def steps(self, name: str, seed: int, train: Any, tokenizer: Any) -> int:
        """The budget as training steps of an entrant."""
        ((unit, amount),), batch = self.spec.budget.items(), self.batch_size(name)
        if unit == "steps":
            return int(amount)
        if unit == "epochs":
            right = "steps, tokens or cpu_seconds: sequences are drawn, and none comes twice"
            expect(not isinstance(train, Drawn), "budget", self.spec.budget, right)
            return math.ceil(amount * len(train) / batch)
        if unit == "tokens":
            rows = [train[index]["input_ids"] for index in range(min(len(train), 1000))]
            return max(1, round(amount / (batch * np.mean([len(row) for row in rows]))))
        record = self.folder / slug(name) / "steps.json"
        if not record.exists():
            cost, scratch = Cost(), self.folder / slug(name) / "calibration"
            few = {"max_steps": CALIBRATION, "save_strategy": "no", "logging_steps": 1}
            arguments = self.experiment.training_class(str(scratch), **self.training_of(name) | few)
            model = self.model(name, seed, tokenizer)
            trainer = self.experiment.trainer(model, arguments, train, None, tokenizer)
            trainer.add_callback(cost)
            trainer.train()
            shutil.rmtree(scratch, ignore_errors=True)
            seconds = [entry["seconds"] for entry in trainer.state.log_history if "loss" in entry]
            per_step = (seconds[-1] - seconds[WARMING - 1]) / (CALIBRATION - WARMING)
            write_whole(record, json.dumps({"cpu_seconds": amount, "steps": max(1, round(amount / per_step))}) + "\n")
        return json.loads(record.read_text(encoding="utf-8"))["steps"]

    def rows(self, split: str, name: str, seed: int, tokenizer: Any, count: int) -> Any:
        """The inputs of an entrant."""
        experiment = self.experiment
        return experiment.rows(split, experiment.part(seed), tokenizer, self.max_length(name), count, seed)

    def arguments(self, folder: Path, name: str, rate: float, seed: int, steps: int) -> TrainingArguments:
        """The Trainer's."""
        every = max(1, steps // self.spec.evaluations)
        scheduled: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": every, "logging_steps": every}
        scheduled |= {"save_strategy": "steps", "save_steps": every, "save_total_limit": 1}
        metric = {
            "metric_for_best_model": self.experiment.metric,
            "greater_is_better": self.experiment.greater_is_better,
        }
        given = {"max_steps": steps, "learning_rate": rate, "seed": seed, "data_seed": seed}
        device = {"use_cpu": device_type() == "cpu"}
        options = scheduled | metric | device | self.training_of(name) | given
        return self.experiment.training_class(str(folder), **options)

    def train(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """Train a cell, unless it is trained, and return what it cost and how it validates."""
        folder = self.folder / slug(name) / f"seed-{seed}" / f"rate-{rate:g}"
        entrant = self.spec.entrants[name]
        if is_linear(entrant):
            return self.train_linear(rate, seed, name)
        if "trained_as" in entrant:
            return self.train(entrant["trained_as"], rate, seed)
        experiment, tokenizer = self.experiment, self.tokenizer(self.experiment.part(seed))
        train = self.rows("train", name, seed, tokenizer, self.batch_size(name))
        steps = self.steps(name, seed, train, tokenizer)
        arguments = self.arguments(folder, name, rate, seed, steps)
        checkpoint = checkpoint_to_resume(COMMAND, arguments, settings_of(arguments) | self.settings(name))
        if (done := results_of(arguments)) is not None:
            return done
        train = self.rows("train", name, seed, tokenizer, self.batch_size(name) * steps)
        validation = self.rows("validation", name, seed, tokenizer, 0)
        model = self.model(name, seed, tokenizer)
        trainer = experiment.trainer(model, arguments, train, validation, tokenizer)
        trainer.add_callback(Cost())
        if "annealed_to" in entrant:
            trainer.add_callback(synkhorn.AnnealSortTemperature(entrant["annealed_to"]))
        trainer.remove_callback(PrinterCallback)
        set_seed(seed)
        with explained_when_the_disk_is_full(folder):
            train_to_the_end(trainer, checkpoint)
            trainer.save_model()
            measured = trainer.evaluate()
            history = trainer.state.log_history
            key = f"eval_{experiment.metric}"
            results: dict[str, Any] = {
                "validation": measured[key],
                "steps": steps,
                "seconds": history[-1]["seconds"],
                "peak_megabytes": max(entry["peak_megabytes"] for entry in history if "peak_megabytes" in entry),
                "parameters": model.num_parameters(),
                "curve": [[entry["step"], entry["seconds"], entry[key]] for entry in history[:-1] if key in entry],
            }
            finish(trainer, results, {})
        for left in folder.glob("checkpoint-*"):
            shutil.rmtree(left)
        return results

    def settings(self, name: str) -> dict[str, Any]:
        """What makes a cell, beside the Trainer's arguments."""
        return settings(self.spec, name)

    def states(self, name: str, seed: int, texts: list[str]) -> np.ndarray:
        """`mean_states` of an entrant's model, each text's once."""
        known = self.known_states.setdefault((name, self.source(name, seed)), {})
        start = time.process_time()
        if missing := [text for text in dict.fromkeys(texts) if text not in known]:
            tokenizer = self.tokenizer(self.experiment.part(seed))
            model: Any = self.model(name, seed, tokenizer)
            model = model.to(device_type())
            batch_size = self.training_of(name)["per_device_eval_batch_size"]
            found = mean_states(model, tokenizer, missing, self.max_length(name), batch_size)
            known |= dict(zip(missing, found, strict=True))
            self.seconds_of_text[name] = (time.process_time() - start) / len(missing)
        return np.stack([known[text] for text in texts])

    def linear(self, rate: float, seed: int, name: str) -> tuple[Any, Any]:
        """A linear classifier, trained, and how it reads a split."""
        entrant, examples = self.spec.entrants[name], self.experiment.examples(self.experiment.part(seed))

        def read(split: str) -> Any:
            texts = examples[split]["text"]
            if entrant.get("frozen", False):
                return self.states(name, seed, list(texts))
            return [" ".join(text.split()[: entrant.get("words")]) for text in texts]

        model = of_states(rate) if entrant.get("frozen", False) else of_words(entrant, rate)
        return model.fit(read("train"), examples["train"]["label"]), read

    def train_linear(self, rate: float, seed: int, name: str) -> dict[str, Any]:
        """As `train`."""
        examples = self.experiment.examples(self.experiment.part(seed))
        if self.spec.entrants[name].get("frozen", False):
            self.states(name, seed, list(examples["train"]["text"]))
        start = time.process_time()
        model, read = self.linear(rate, seed, name)
        # a frozen model reads a text once, and not again with each rate
        seconds = time.process_time() - start + self.seconds_of_text.get(name, 0) * len(examples["train"])
        said = model.predict(read("validation"))
        scores = self.experiment.measure(said, np.array(examples["validation"]["label"]))
        return {
            "validation": scores[self.experiment.metric],
            "seconds": seconds,
            "parameters": model[-1].coef_.size,
            "curve": [],
        }

    def test(self, name: str, rate: float, seed: int) -> dict[str, Any]:
        """What a trained cell says of the test split: its metrics, the first of them by length, and its sort."""
        experiment, entrant = self.experiment, self.spec.entrants[name]
        part = experiment.part(seed)
        sort: list[dict[str, float]] = []
        if is_linear(entrant):
            model, read = self.linear(rate, seed, name)
            rows, said = None, model.predict(read("test"))
            right: Any = np.array(experiment.examples(part)["test"]["label"])
        else:
            folder = self.folder / slug(entrant.get("trained_as", name)) / f"seed-{seed}" / f"rate-{rate:g}"
            tokenizer = self.tokenizer(part)
            rows = self.rows("test", name, seed, tokenizer, 0)
            served = own_fields(entrant, {}) if "trained_as" in entrant else {}
            config = AutoConfig.from_pretrained(folder, **served)
            model = experiment.auto_class.from_pretrained(folder, config=config)
            trainer = experiment.trainer(model, self.arguments(folder, name, rate, seed, 1), None, rows, tokenizer)
            predicted = trainer.predict(rows)
            said, right = predicted.predictions, predicted.label_ids
            sort = sort_statistics(model, trainer.get_test_dataloader(rows))
        lengths = np.array(experiment.lengths(rows, part))
        by_length = []
        for shortest, longest in bins(lengths):
            chosen = (lengths >= shortest) & (lengths <= longest)
            score = experiment.measure(said[chosen], right[chosen])[experiment.metric]
            by_length.append({"from": shortest, "to": longest, "rows": int(chosen.sum()), experiment.metric: score})
        results = {"test": experiment.measure(said, right), "by_length": by_length}
        return results | ({"sort": sort} if sort else {})

    def result(self, name: str, seed: int, rates: list[float]) -> dict[str, Any]:
        """The cells of an entrant and a seed, of which the best on the validation split is tested, once."""
        folder = self.folder / slug(name) / f"seed-{seed}"
        training = {} if is_linear(self.spec.entrants[name]) else self.training
        settings = json.loads(json.dumps(self.settings(name) | {"rates": rates, "training": training}))
        run = {"command": COMMAND, "settings": settings}
        if (folder / RECORD).exists():
            result = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            check_same_run(folder, result.pop("run"), run, None)
            return result
        trained = {rate: self.train(name, rate, seed) for rate in rates}
        sign = 1 if self.experiment.greater_is_better else -1
        # a run that has diverged is the worst
        best = max(rates, key=lambda rate: np.nan_to_num(sign * trained[rate]["validation"], nan=-np.inf))
        validation = {f"{rate:g}": trained[rate]["validation"] for rate in rates}
        result = {"entrant": name, "seed": seed, "rate": best, **trained[best], "validation": validation}
        result |= self.test(name, best, seed)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / RECORD, json.dumps(result | {"run": run}, indent=2) + "\n")
        for rate in set(rates) - {best}:
            for weights in (folder / f"rate-{rate:g}").glob("*.safetensors"):
                weights.unlink()
        return result

    def run(self, recorded: dict[tuple[str, int], dict[str, Any]]):
        """
        Yield the result of each entrant, seed by seed: the first seed chooses the rate of the others. What is recorded
        is not done again.
        """
        chosen: dict[str, float] = {}
        parts: set[tuple[str, int]] = set()
        for seed in self.spec.seeds:
            for name, entrant in self.spec.entrants.items():
                cell = (name, self.experiment.part(seed))
                if "baseline" in entrant and cell in parts:
                    # nothing in it is drawn
                    continue
                parts.add(cell)
                known = entrant.get("trained_as", name)
                rates = [chosen[known]] if known in chosen else entrant.get("learning_rates", self.spec.learning_rates)
                result = recorded[name, seed] if (name, seed) in recorded else self.result(name, seed, rates)
                chosen[name] = result["rate"]
                yield result


def settings(spec: ComparisonSpec, name: str) -> dict[str, Any]:
    """What of a comparison makes the cells of an entrant."""
    kept = ["task"]
    if "baseline" not in spec.entrants[name]:
        kept += ["model", "max_length", "tokenizer", "vocab_size", "budget"]
    return {"entrant": spec.entrants[name]} | {field: getattr(spec, field) for field in kept}


def recorded_results(path: Path, spec: ComparisonSpec) -> dict[tuple[str, int], dict[str, Any]]:
    """The results in a report, by entrant and seed, whose cells are still the same ones."""
    if not path.exists():
        return {}
    report = json.loads(path.read_text(encoding="utf-8"))
    earlier = ComparisonSpec(**report["spec"])

    def is_same(name: str) -> bool:
        if name not in spec.entrants or name not in earlier.entrants:
            return False
        trained = [] if is_linear(spec.entrants[name]) else ["learning_rates", "training"]
        same = [(settings(x, name), *(getattr(x, field) for field in trained)) for x in (earlier, spec)]
        return same[0] == same[1]

    about = {"machine": report["machine"]}
    return {(x["entrant"], x["seed"]): about | x for x in report["results"] if is_same(x["entrant"])}


def bins(lengths: np.ndarray) -> list[tuple[int, int]]:
    """The lengths, where there are few, or five ranges with about as many documents each."""
    different = np.unique(lengths)
    if len(different) <= 8:
        return [(int(length), int(length)) for length in different]
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 6)).astype(int))
    return [
        (int(low) + (place > 0), int(high)) for place, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
    ]


def compare(
    spec: ComparisonSpec, folder: Path, path: Path, command: str, data_dir: str | None, keep_recorded: bool = False
) -> list[dict[str, Any]]:
    """
    Run a comparison, write its report after each result, and return the results.

    Args:
        spec: what is compared.
        folder: of the trainings.
        path: of the report, without ending.
        command: what repeats it.
        data_dir: folder of unpacked packages.
        keep_recorded: whether results in the report at `path` stand for their cells, where these are still the same.
    """
    comparison = Comparison(spec, folder, data_dir)
    recorded = recorded_results(with_ending(path, ".json"), spec) if keep_recorded else {}
    results: list[dict[str, Any]] = []
    text, figures = "", json.loads(json.dumps(asdict(spec)))
    for result in comparison.run(recorded):
        results.append(result)
        recorded.pop((result["entrant"], result["seed"]), None)
        text = report(path, figures, [*results, *recorded.values()], comparison.experiment, command)
        print(f"{result['entrant']}, seed {result['seed']}, rate {result['rate']:g}: {result['test']}", flush=True)
    print(text)
    return results
