"""Tiny data of each fine-tuning task, and the tiny models that learn it."""

import json
import random
from pathlib import Path

MODELS = {
    "synthesizer": {"synthesizers": ["dense", "dot_product"]},
    "sinkhorn": {"block_size": 8, "gumbel_noise": False},
}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 48,
    "hidden_dropout": 0.0,
}
NAMES, PLACES = ["Ann", "Bob", "Eve", "Tom"], ["Rome", "Oslo", "Bonn", "Lima"]


def classification(generator: random.Random) -> dict:
    label = generator.randrange(3)
    words = generator.choices([["bad", "poor"], ["fine", "fair"], ["great", "good"]][label], k=generator.randint(1, 30))
    return {"text": " ".join(words), "label": ["low", "mid", "high"][label]}


def classes(generator: random.Random) -> dict:
    label = generator.sample(["film", "music", "food"], k=generator.randrange(4))
    return {"text": " ".join(["well", *label]), "label": label}


def grade(generator: random.Random) -> dict:
    words = generator.choices(["good", "bad"], k=12)
    return {"text": " ".join(words), "label": words.count("good") / 12}


def tags(generator: random.Random) -> dict:
    pairs = [("well", "O")] * generator.randint(0, 60)
    pairs += [(generator.choice(NAMES), "B-PER"), ("saw", "O"), (generator.choice(PLACES), "B-LOC"), ("City", "I-LOC")]
    return {"tokens": [word for word, _ in pairs], "ner_tags": [tag for _, tag in pairs]}


def question(generator: random.Random) -> dict:
    name, place = generator.choice(NAMES), generator.choice(PLACES)
    filler = " ".join(generator.choices(["well", "so", "and"], k=generator.randint(0, 60)))
    context = f"{filler} {name} lives in {place} ."
    answers = {"text": [place], "answer_start": [context.index(place)]}
    return {"question": f"Where is {name}?", "context": context, "answers": answers}


def pair(generator: random.Random) -> dict:
    word = generator.choice(["aa", "bb", "cc"])
    filler = " ".join(generator.choices(["well", "so"], k=generator.randint(0, 12)))
    return {"text": f"{filler} {word}".strip(), "target": {"aa": "好吧", "bb": "你们", "cc": "再见"}[word]}


def choice(generator: random.Random) -> dict:
    label = generator.randrange(2)
    return {
        "sent1": "Read.",
        "sent2": "Say",
        "ending0": ["no", "yes"][label],
        "ending1": ["yes", "no"][label],
        "label": 1 - label,
    }


MAKERS = {
    "classification": classification,
    "token-classification": tags,
    "question-answering": question,
    "multiple-choice": choice,
    "seq2seq": pair,
}
# beyond the columns' defaults
EXTRA = {
    "multiple-choice": ["--choice_columns", "ending0", "ending1"],
    "seq2seq": ["--max_target_length", "8"],
}


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_data(folder: Path, task: str, train: int = 96, test: int = 24, maker=None) -> list[str]:
    """Write a training, a validation and a test file, of the task or by `maker`, and return what names them."""
    arguments = list(EXTRA.get(task, []))
    for seed, (split, size) in enumerate({"train": train, "validation": test, "test": test}.items()):
        generator = random.Random(seed)
        path = write_jsonl(folder / f"{split}.jsonl", [(maker or MAKERS[task])(generator) for _ in range(size)])
        arguments += [f"--{split}_files", path]
    return arguments


def from_scratch(family: str, **fields) -> list[str]:
    """The arguments of a tiny model from scratch."""
    return [
        "--family",
        family,
        "--model_config",
        json.dumps(SIZES | MODELS.get(family, {}) | fields),
        "--vocab_size",
        "320",
    ]


TRAINING = ["--num_train_epochs", "6", "--learning_rate", "1e-2", "--disable_tqdm", "true", "--bf16", "false"]
TRAINING += ["--per_device_train_batch_size", "8", "--warmup_steps", "0"]
