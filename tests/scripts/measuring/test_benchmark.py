"""The benchmark: what it measures, in which order, what it makes of the figures, and how it shows what failed."""

import json
import sys
import time

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from synkhorn.scripts import benchmark
from synkhorn.scripts.measuring import benchmark_length, benchmark_report, benchmark_worker, report
from synkhorn.scripts.measuring.benchmark_models import (
    BERT,
    FLOOR,
    GPT2,
    LUCIDRAINS,
    MODELS,
    OTHER_PACKAGE,
    PEERS,
    Sizes,
    base_model,
    family,
    is_causal,
)
from synkhorn.scripts.measuring.benchmark_worker import BOTH, FORWARD, Failed, Settings, Steps, Worker

TINY = Sizes(length=128, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=32)
ARGUMENTS = ["--lengths", "128", "--hidden_size", "16", "--num_hidden_layers", "1", "--num_attention_heads", "2"]


def build(name: str, sizes: Sizes = TINY):
    if name.startswith(tuple(LUCIDRAINS)):
        pytest.importorskip(OTHER_PACKAGE)
    return base_model(name, sizes)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_runs_forward_and_backward(name):
    model, states = build(name)
    hidden = states(torch.randint(1, 32, (2, 128)))
    # Reformer has two streams
    assert hidden.shape == (2, 128, 32 if name == "reformer" else 16)
    hidden.square().sum().backward()
    assert all(x.p == 0 for x in model.modules() if isinstance(x, torch.nn.Dropout))
    assert sum(x.grad is not None for x in model.parameters()) > 10


@pytest.mark.parametrize("name", [name for name in MODELS if is_causal(name)])
def test_causal_models_see_no_later_token(name):
    model, states = build(name)
    ids = torch.randint(1, 32, (1, 128))
    changed = torch.cat((ids[:, :-1], 31 - ids[:, -1:]), dim=1)
    with torch.no_grad():
        difference = (states(ids) - states(changed))[0].abs().amax(-1)
    assert difference[-1] > 1e-3 and difference[:-1].max() < 1e-5, name


def test_the_floor_keeps_all_projections_forward_and_backward():
    model, states = build(FLOOR)
    width, layers, length = 16, 2, 128
    # four projections and a feed-forward layer of twice four times the width
    products = 2 * layers * length * (4 + 8) * width**2
    with FlopCounterMode(display=False) as forward:
        hidden = states(torch.randint(1, 32, (1, length)))
    with FlopCounterMode(display=False) as backward:
        hidden.square().sum().backward()
    assert forward.get_total_flops() == products
    assert backward.get_total_flops() == 2 * products
    assert all(weight.grad.abs().sum() > 0 for name, weight in model.named_parameters() if "attention." in name)


def test_the_floor_is_the_models_without_attention():
    floor, ours = (build(name)[0] for name in (FLOOR, "dot_product"))
    assert benchmark_worker.weights(floor) == benchmark_worker.weights(ours) == benchmark_worker.weights(build(BERT)[0])
    # every token sees itself alone
    ids = torch.randint(1, 32, (1, 128))
    changed = torch.cat((31 - ids[:, :1], ids[:, 1:]), dim=1)
    with torch.no_grad():
        states = [floor(x).last_hidden_state for x in (ids, changed)]
    assert torch.equal(states[0][:, 1:], states[1][:, 1:]) and not torch.equal(states[0][:, 0], states[1][:, 0])


def test_models_are_of_a_family_and_compared_with_a_peer_of_their_kind():
    assert {family(name) for name in MODELS} == {"floor", "sinkhorn", "synthesizer", "peer"}
    assert family("sinkhorn_block128") == family("sinkhorn_causal") == "sinkhorn"
    assert family("random+dense_causal") == "synthesizer"
    assert benchmark_report.peer_of("dense") == BERT and benchmark_report.peer_of("dense_causal") == GPT2
    assert set(PEERS) <= set(MODELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "dnese"], "--models 'dnese' is unknown: choose among floor, sinkhorn"),
        (["--models", "dense+sinkhorn"], "--models 'dense\\+sinkhorn' is unknown"),
        (["--dtype", "int8"], "--dtype 'int8' is unknown"),
        (["--phases", "backward"], "--phases 'backward' is unknown: choose among forward, forward\\+backward"),
        (["throughput", "--max_length", "100"], "--max_length 100 must be a multiple of 64"),
    ],
)
def test_bad_arguments_are_named(arguments, message, tmp_path, monkeypatch):
    # what is not refused writes its report where it is run
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        benchmark.main(arguments)


def test_phases_are_measured_in_their_order():
    assert benchmark_length.BenchmarkArguments(phases=[BOTH, FORWARD]).phases == [FORWARD, BOTH]


class Job:
    """What the workers of the tests run."""

    def __init__(self, number: int):
        self.number = number

    def double(self) -> int:
        return 2 * self.number

    def fail(self) -> None:
        raise RuntimeError("the first line\nthe second")

    def take(self, megabytes: int) -> int:
        return torch.ones(megabytes, 2**20, dtype=torch.uint8).shape[0]

    def sleep(self) -> None:
        time.sleep(60)

    def leave(self) -> None:
        sys.exit(3)


def worker(number: int = 4, **kwargs) -> Worker:
    return Worker(Job, number, **{"memory_gigabytes": 0.5} | kwargs)


def test_a_worker_answers_until_it_is_ended():
    one, other = worker(1), worker(2)
    assert [one.ask("double"), other.ask("double"), one.ask("double")] == [2, 4, 2]
    one.end()
    assert other.ask("double", timeout=60) == 4
    other.end()
    assert not one.process.is_alive() and not other.process.is_alive()


@pytest.mark.parametrize(
    ("method", "arguments", "timeout", "message", "is_size"),
    [
        ("fail", [], None, "RuntimeError: the first line$", False),
        ("take", [2000], None, r"out of memory \(0.5 GB\)$", True),
        ("sleep", [], 1.0, "no result within 1 s$", True),
        ("leave", [], None, "the process ended with exit code 3$", False),
    ],
)
def test_what_fails_says_why_and_is_ended(method, arguments, timeout, message, is_size):
    failing = worker()
    assert failing.ask("take", 100) == 100
    with pytest.raises(Failed, match=message) as failed:
        failing.ask(method, *arguments, timeout=timeout)
    assert failed.value.is_size == is_size
    failing.process.join(10)
    assert not failing.process.is_alive()


def test_a_model_is_measured_in_a_process_of_its_own():
    sizes = Sizes(**vars(TINY) | {"length": 2048, "hidden_size": 64})
    measured = Worker(Steps, BERT + "_eager", "float32", sizes, Settings(), memory_gigabytes=4)
    _, forward = measured.ask("first", FORWARD)
    _, both = measured.ask("first", BOTH)
    seconds = measured.ask("turn")
    measured.end()
    matrix = 2 * 2048**2 * 4 / 2**20
    # logits and weights of one layer at a time; weights of all for the way back
    assert matrix < forward < 6 * matrix
    assert forward + matrix < both < 12 * matrix
    assert seconds > 0


class CannedWorker:
    """A worker whose answers are known: seconds by model, length and phase; it notes who is asked for what."""

    seconds: dict = {}
    asked: list = []

    def __init__(self, job, model, dtype, sizes, settings, memory_gigabytes):
        self.name, self.length, self.turns = model, sizes.length, 0

    def ask(self, method, *args, timeout=None):
        self.asked.append((self.name, self.length, method))
        if method == "weights":
            return 7
        if method == "first":
            self.phase = args[0]
        figure = self.seconds[self.name] * (self.length / 100) * (1 if self.phase == FORWARD else 3)
        if timeout is not None and figure > timeout:
            raise Failed(f"no result within {timeout:.0f} s", is_size=True)
        if method == "first":
            return 10 * figure, 1000 * figure
        self.turns += 1
        return figure * self.turns

    def end(self):
        self.asked.append((self.name, self.length, "end"))


@pytest.fixture
def canned(monkeypatch):
    monkeypatch.setattr(benchmark_length, "Worker", CannedWorker)
    monkeypatch.setattr(CannedWorker, "asked", [])
    return CannedWorker


def canned_run(tmp_path, *arguments: str) -> tuple[dict, str]:
    benchmark.main([*arguments, "--output", str(tmp_path / "speed")])
    return json.loads((tmp_path / "speed.json").read_text()), (tmp_path / "speed.md").read_text()


def test_models_take_turns_and_ratios_are_taken_round_by_round(canned, tmp_path):
    canned.seconds = {FLOOR: 0.1, BERT: 0.4, "dense": 0.2}
    figures, text = canned_run(
        tmp_path, "--models", FLOOR, BERT, "dense", "--lengths", "200", "100", "--rounds", "3", "--cell_timeout", "99"
    )
    order = [model for model, length, method in canned.asked if method == "turn" and length == 100]
    assert order == 6 * [FLOOR, BERT, "dense"]
    row = next(row for row in figures["results"] if (row["model"], row["length"], row["phase"]) == ("dense", 100, BOTH))
    # the turns take 0.6 s times their number, which has reached 3 in the first phase; the first step does not count
    assert row["seconds"] == pytest.approx([6.0, 2.4, 3.0, 3.6])
    assert (row["ms"], row["least"], row["most"]) == pytest.approx((3000, 2400, 3600))
    assert (row["times floor"], row["times peer"], row["memory times floor"]) == pytest.approx((2.0, 0.5, 2.0))
    assert row["tokens/s"] == pytest.approx(100 / 3.0) and row["weights"] == 7
    assert "| `dense` | 3000 | 2400–3600 | 2.00 | 0.50 | 600 | 2.00 | 33 |" in text
    assert "| `dense` | 2.00 / 2.00 |" in text and "commit" in text
    # from the shortest length on, and each process ends with its length
    lengths = [length for _, length, _ in canned.asked]
    assert set(lengths) == {100, 200} and lengths == sorted(lengths)
    assert sum(method == "end" for *_, method in canned.asked) == 6
    assert Image.open(tmp_path / "speed-synthesizer-float32.png").width > 1000


def test_a_slow_model_takes_fewer_turns_and_then_none(canned, tmp_path):
    canned.seconds = {FLOOR: 0.01, "dense": 0.5, BERT: 3.0}
    figures, text = canned_run(
        tmp_path, "--models", FLOOR, BERT, "dense", "--lengths", "100", "200", "400", "--cell_timeout", "11"
    )
    rows = {(row["model"], row["length"], row["phase"]): row for row in figures["results"]}
    assert len(rows[FLOOR, 100, FORWARD]["seconds"]) == 6
    # 5 s, 0.5 s, 1 s, 1.5 s: the next would pass 11 s
    assert len(rows["dense", 100, FORWARD]["seconds"]) == 5
    # a reference takes its first step, however long
    assert len(rows[BERT, 400, BOTH]["seconds"]) == 1 and rows[BERT, 400, BOTH]["seconds"][0] > 11
    assert rows["dense", 400, BOTH]["missing"].startswith("not run: predicted ")
    assert "| `dense` | not run: predicted " in text


def test_without_the_floor_there_are_no_ratios_to_it(canned, tmp_path):
    canned.seconds = {BERT: 0.4, "dense": 0.2}
    figures, _ = canned_run(tmp_path, "--models", BERT, "dense", "--lengths", "100", "--rounds", "2")
    for row in figures["results"]:
        assert "times peer" in row and not {"times floor", "memory times floor"} & set(row)


def test_a_turn_that_fails_is_shown(canned, tmp_path, monkeypatch):
    canned.seconds = {FLOOR: 0.01, "dense": 0.02}

    def ask(self, method, *args, timeout=None):
        if (self.name, method, self.turns) == ("dense", "turn", 1):
            raise Failed("the process ended with exit code 1")
        return asked(self, method, *args, timeout=timeout)

    asked = canned.ask
    monkeypatch.setattr(canned, "ask", ask)
    _, text = canned_run(tmp_path, "--models", FLOOR, "dense", "--lengths", "100", "--rounds", "3")
    assert text.count("| `dense` | the process ended with exit code 1 |") == 2


def test_what_is_too_large_is_not_tried_again(canned, tmp_path):
    canned.seconds = {FLOOR: 0.01, "dense": 20.0}
    figures, text = canned_run(
        tmp_path, "--models", FLOOR, "dense", "--lengths", "100", "200", "--rounds", "1", "--cell_timeout", "11"
    )
    reasons = [row["missing"] for row in figures["results"] if row["model"] == "dense"]
    assert reasons == 2 * ["no result within 11 s"] + 2 * ["not run: no result within 11 s at 100"]
    assert "| `dense` | no result within 11 s | | | | | | |" in text
    assert [(length, method) for model, length, method in canned.asked if model == "dense"] == [
        (100, "weights"),
        (100, "first"),
    ]


def test_a_step_is_predicted_by_its_growth():
    assert benchmark_length.predicted({}, 64) == 0
    assert benchmark_length.predicted({16: 1.0}, 64) == 4
    assert benchmark_length.predicted({16: 1.0, 32: 4.0}, 64) == pytest.approx(16)
    # at least linear, at most quadratic
    assert benchmark_length.predicted({16: 1.0, 32: 1.0}, 64) == 2
    assert benchmark_length.predicted({16: 1.0, 32: 16.0}, 64) == pytest.approx(64)


def test_ratios_leave_out_the_first_round_where_there_are_others():
    assert benchmark_report.ratio([9.0, 2.0, 4.0, 6.0], [1.0, 1.0, 1.0, 1.0]) == 4
    assert benchmark_report.ratio([8.0], [2.0, 1.0, 1.0]) == 4


def test_a_failing_model_is_shown_among_the_others(tmp_path, monkeypatch):
    # a model with a wrong configuration: SortCut is bidirectional
    models = ["--models", FLOOR, "sinkhorn_sortcut_causal"]
    benchmark.main([*models, *ARGUMENTS, "--vocab_size", "32", "--rounds", "1", "--output", str(tmp_path / "speed")])
    text = (tmp_path / "speed.md").read_text()
    assert text.count("| `sinkhorn_sortcut_causal` | ValueError: sortcut_blocks=2 with is_causal=True") == 2
    assert text.count("| `floor` |") == 2
    results = json.loads((tmp_path / "speed.json").read_text())["results"]
    assert results[0]["ms"] > 0 and results[0]["times floor"] == 1


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr("synkhorn.scripts.measuring.benchmark_models.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="sinkhorn-transformer is not installed: pip install"):
        base_model("lucidrains", TINY)


def test_the_machine_is_described_from_anywhere(tmp_path, monkeypatch):
    here = report.machine()
    monkeypatch.chdir(tmp_path)
    assert report.machine() == here and "cores" in here["cpu"]
    # where there is no git
    monkeypatch.setenv("PATH", "")
    assert "commit" not in report.machine()
