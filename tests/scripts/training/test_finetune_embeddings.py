"""`synkhorn finetune embeddings` as its user runs it, on tiny pairs."""

import json
import random

import pytest
from checkpoints import family_config
from processes import python
from task_data import write_jsonl

import synkhorn
from synkhorn import FAMILIES
from synkhorn.scripts import finetune
from synkhorn.scripts.training import embeddings

# loads them in a process without synkhorn, and prints how a query is near to its document and to another
LOAD = """
import sys
sys.modules["synkhorn"] = None
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], trust_remote_code=True)
query, right, wrong = model.encode(["find abcabc", "here is abcabc", "here is ffeedd"], normalize_embeddings=True)
print(query @ right, query @ wrong)
"""


def pairs(seed: int, count: int) -> list[dict]:
    generator = random.Random(seed)
    words = ["".join(generator.choices("abcdef", k=6)) for _ in range(count)]
    return [{"q": f"find {word}", "d": f"here is {word}"} for word in words]


@pytest.fixture
def call(request, tmp_path):
    """The arguments, but for the output folder."""
    family = getattr(request, "param", "sinkhorn")
    tokenizer = synkhorn.byte_tokenizer(model_max_length=32)
    fields = {"max_position_embeddings": 32, "num_hidden_layers": 1} | synkhorn.token_fields(tokenizer)
    config = type(family_config(family)).from_dict(family_config(family).to_dict() | fields)
    FAMILIES[family].model_class("Model")(config).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    train, test = (
        write_jsonl(tmp_path / f"{name}.jsonl", pairs(seed, count))
        for seed, (name, count) in enumerate({"train": 80, "test": 20}.items())
    )
    arguments = ["embeddings", "--model_name_or_path", str(tmp_path / "start"), "--train_files", train]
    arguments += ["--validation_files", test, "--test_files", test, "--query_column", "q", "--document_column", "d"]
    arguments += ["--num_train_epochs", "3", "--learning_rate", "5e-3", "--disable_tqdm", "true", "--bf16", "false"]
    return [*arguments, "--per_device_train_batch_size", "8"]


@pytest.mark.parametrize("call", ["sinkhorn", pytest.param("synthesizer", marks=pytest.mark.slow)], indirect=True)
def test_queries_find_their_documents_also_without_the_package(call, tmp_path):
    output = tmp_path / "trained"
    results = finetune.main([*call, "--output_dir", str(output), "--mini_batch_size", "4"])
    # by chance: 1 in 20
    assert results.keys() == set(embeddings.METRICS) and results["accuracy@1"] > 0.3
    right, wrong = map(float, python("-c", LOAD, output, HF_HOME=str(tmp_path / "home")).split())
    assert right > wrong
    assert finetune.main([*call, "--output_dir", str(output), "--mini_batch_size", "4"]) == results


def test_an_interrupted_training_resumes(call, tmp_path, monkeypatch):
    expected = finetune.main([*call, "--output_dir", str(tmp_path / "whole")])

    begin = embeddings.ExpectedTime.on_step_begin

    def interrupt(self, args, state, control, **kwargs):
        if state.global_step == 15:
            raise KeyboardInterrupt
        begin(self, args, state, control, **kwargs)

    broken = [*call, "--output_dir", str(tmp_path / "broken")]
    with monkeypatch.context() as patch:
        patch.setattr(embeddings.ExpectedTime, "on_step_begin", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune.main(broken)
    assert finetune.main(broken) == pytest.approx(expected)
    whole, resumed = (
        json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in ("whole", "broken")
    )
    losses = [[entry["loss"] for entry in history if "loss" in entry] for history in (whole, resumed)]
    assert losses[0] == pytest.approx(losses[1])


def test_mistakes_name_their_remedy(call, tmp_path, monkeypatch):
    output = ["--output_dir", str(tmp_path / "none")]
    without = [call[0], *call[3:]]
    for arguments, message in (
        (without, "give --model_name_or_path"),
        ([*call, "--max_length", "99"], "max_length=99 must be 1 to 32"),
        ([*call, "--lora_r", "2"], "leave --lora_r out"),
        ([*call, "--mini_batch_size", "0"], "mini_batch_size=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune.main([*arguments, *output])
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install sentence-transformers"):
        finetune.main([*call, *output])
