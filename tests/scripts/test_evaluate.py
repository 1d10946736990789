"""`synkhorn evaluate` against what fine-tuning measured, and against a loop over tokens."""

import importlib.util
import math

import pytest
import torch
from task_data import SIZES, write_jsonl

import synkhorn
from synkhorn.scripts import evaluate
from synkhorn.scripts.tasks import TASKS, evaluation

TEXTS = [
    {"text": "A short one."},
    {"text": "Größere Texte sind länger als das Modell; " * 4},
    {"text": "x"},
]


@pytest.fixture(scope="module")
def causal_models(tmp_path_factory):
    """Tiny causal language models with random weights, one of bytes and one whose tokenizer adds no token."""
    folder = tmp_path_factory.mktemp("causal")
    for name in ("bytes", "bare"):
        tokenizer = synkhorn.byte_tokenizer(24, is_causal=True)
        if name == "bare":
            tokenizer.backend_tokenizer.post_processor = None
        torch.manual_seed(0)
        config = synkhorn.SinkhornConfig(
            **SIZES | {"max_position_embeddings": 24, "block_size": 8, "initializer_range": 0.5},
            **synkhorn.token_fields(tokenizer),
        )
        synkhorn.SinkhornForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("kind", ["bytes", "bare"])
@pytest.mark.parametrize("stride", [0, 7])
def test_perplexity_is_that_of_a_loop_over_tokens(kind, stride, causal_models, tmp_path):
    path = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    call = ["language-modeling", "--model_name_or_path", str(causal_models / kind), "--test_files", path]
    measured = evaluate.main([*call, "--stride", str(stride), "--resamples", "0"])["metrics"]
    model = synkhorn.SinkhornForCausalLM.from_pretrained(causal_models / kind).eval()
    start = [model.config.bos_token_id] if kind == "bytes" else []
    room = 24 - len(start)
    # the least with which each token of a text is predicted
    stride = max(stride, 1 - len(start))
    nats, count = 0.0, 0
    for text in TEXTS:
        own = list(text["text"].encode())
        begin = 0
        while True:
            window = start + own[begin : begin + room]
            known = len(start) + (stride if begin else 0)
            for position in range(max(known, 1), len(window)):
                logits = model(torch.tensor([window[:position]])).logits[0, -1].detach()
                nats -= float(logits.log_softmax(-1)[window[position]])
                count += 1
            if begin + room >= len(own):
                break
            begin += room - stride
    # without a token before it, the first of each text is predicted by nothing
    expected = sum(len(text["text"].encode()) for text in TEXTS) - (0 if start else len(TEXTS))
    assert count == expected
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / expected, rel=1e-5)
    assert measured["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_a_text_file_is_lines_or_a_document(causal_models, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one line\nand another\n")
    call = ["language-modeling", "--model_name_or_path", str(causal_models / "bytes"), "--test_files", str(path)]
    documents = {by: evaluate.main([*call, "--sample_by", by])["documents"] for by in ("line", "document")}
    assert documents == {"line": 2, "document": 1}


def error_of(arguments: list[str]) -> str:
    with pytest.raises((ValueError, ModuleNotFoundError)) as error:
        evaluate.main(arguments)
    return str(error.value)


def test_errors_say_what_to_do(causal_models, tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "texts.jsonl", TEXTS)
    source = ["--model_name_or_path", str(causal_models / "bytes"), "--test_files", path]
    call = ["language-modeling", *source]
    assert "stride=23 must be 0 to 22" in error_of([*call, "--stride", "23"])
    assert "confidence=95.0 must lie between 0 and 1" in error_of([*call, "--confidence", "95"])
    assert "batch_size=0 must be at least 1" in error_of([*call, "--batch_size", "0"])
    (tmp_path / "short.txt").write_text("x\ny\n")
    bare = ["language-modeling", "--model_name_or_path", str(causal_models / "bare")]
    assert "no token to predict: give longer" in error_of([*bare, "--test_files", str(tmp_path / "short.txt")])
    assert "leave --streaming out" in error_of([*call, "--streaming"])
    assert "needs validation" in error_of([*call, "--split", "validation"])
    assert "is for causal language models" in error_of(["classification", *source, "--lm_eval", "lambada"])
    monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
    assert "pip install lm_eval" in error_of([*call, "--lm_eval", "lambada"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_the_harness_takes_the_model(causal_models, tmp_path):
    rows = [{"text": "ab", "one": "c", "two": "d", "label": index % 2} for index in range(6)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    (tmp_path / "tiny.yaml").write_text(
        f"task: tiny_choice\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{text}}"\ndoc_to_choice: ["{{one}}", "{{two}}"]\n'
        "doc_to_target: label\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    call = ["language-modeling", "--model_name_or_path", str(causal_models / "bytes"), "--resamples", "5"]
    results = evaluate.main([*call, "--lm_eval", "tiny_choice", "--lm_eval_include", str(tmp_path)])
    # all rows ask the same, and half of them have each answer
    assert results["tiny_choice"]["acc,none"] == 0.5


def test_help_lists_the_tasks(capsys):
    evaluate.main([])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*TASKS, "language-modeling"])
