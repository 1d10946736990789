"""The precision of the commands is what the machine is fast in, unless one says otherwise."""

import pytest
import torch
from tiny_runs import pretraining as pretraining_line
from tiny_runs import write_texts
from transformers import AutoModelForCausalLM, TrainingArguments
from variants import tiny_config, tiny_sinkhorn_config

from synkhorn import SinkhornForCausalLM, SynthesizerForSequenceClassification, byte_tokenizer
from synkhorn.scripts import ablate, evaluate, generate, pretrain, quickstart
from synkhorn.scripts.common import generation, precision
from synkhorn.scripts.common.arguments import parse
from synkhorn.scripts.common.precision import choose_bf16, device_type, units_for
from synkhorn.scripts.tasks import evaluation
from synkhorn.scripts.tasks.trainer import FinetuneTrainer
from synkhorn.scripts.training import models, pretraining

WITH, WITHOUT = {"avx2": True, "avx512_bf16": True}, {"avx2": True, "avx512_f": True, "avx512_bf16": False}


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one whose CPU has some instructions, and no accelerator."""

    def fake(capabilities: dict, has_onednn: bool = True, times: float = 4.0):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda *_, **__: False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_onednn)
        monkeypatch.setattr(precision, "times_faster", lambda dtype: times)

    return fake


def trained_in_bf16(*arguments: str) -> bool:
    (training,) = parse([TrainingArguments], [*arguments, "--report_to", "none"], "")
    return training.bf16


@pytest.mark.parametrize(
    ("capabilities", "has_onednn", "times", "bf16"),
    [
        (WITH, True, 2.0, True),
        # units that are no faster than those for float32
        (WITH, True, 1.0, False),
        ({"amx_bf16": True}, True, 6.0, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True, 2.0, True),
        (WITH, False, 2.0, False),
        (WITHOUT, True, 0.02, False),
        ({"architecture": "arm64", "neon": True, "bf16": False}, True, 2.0, False),
        ({"avx512_fp16": True}, True, 2.0, False),
    ],
)
def test_a_cpu_trains_in_bfloat16_where_that_is_faster(capabilities, has_onednn, times, bf16, machine, capsys):
    machine(capabilities, has_onednn, times)
    assert trained_in_bf16() is trained_in_bf16("--bf16", "auto") is bf16
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and printed[0].startswith("Precision: bfloat16 autocast" if bf16 else "Precision: float32")


@pytest.mark.parametrize("capabilities", [WITH, WITHOUT])
def test_the_command_line_overrides_the_machine(capabilities, machine, capsys):
    machine(capabilities)
    assert trained_in_bf16("--bf16") and trained_in_bf16("--bf16", "true")
    # one is warned of what is slow
    assert capsys.readouterr().out.count("--bf16 auto is faster") == (0 if capabilities is WITH else 2)
    assert not trained_in_bf16("--bf16", "false")
    assert not trained_in_bf16("--fp16")
    assert "float16 autocast, as --fp16 asks" in capsys.readouterr().out


def test_a_product_is_timed():
    assert 0 < precision.times_faster(torch.bfloat16) < 100


def test_a_word_that_is_no_precision_is_an_error_that_names_the_argument(capsys):
    with pytest.raises(SystemExit):
        trained_in_bf16("--bf16", "maybe")
    assert "argument --bf16: 'maybe' is not true, false or auto" in capsys.readouterr().err


@pytest.mark.parametrize("has_units", [True, False])
def test_a_gpu_that_emulates_bfloat16_does_not_count(has_units, machine, monkeypatch):
    # its CPU is the other way round
    machine(WITHOUT if has_units else WITH)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_, **__: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda"))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or has_units
    )
    assert choose_bf16("auto", device_type()) is has_units
    assert device_type(use_cpu=True) == "cpu" and units_for(torch.bfloat16, "cpu")[0] is not has_units
    assert units_for(torch.float16, "cuda")[0]


class Asked(Exception):
    """Raised in place of a training, with the arguments that it was to have."""


@pytest.mark.parametrize(("capabilities", "bf16"), [(WITH, True), (WITHOUT, False)])
def test_every_training_command_chooses_alike(capabilities, bf16, machine, monkeypatch, tmp_path):
    machine(capabilities)

    def train(self, model, args, **_):
        raise Asked(args.bf16)

    monkeypatch.setattr(FinetuneTrainer, "__init__", train)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Asked, match=str(bf16)):
        quickstart.main(["--max_train_samples", "8", "--max_test_samples", "8"])
    line = pretraining_line(write_texts(tmp_path / "texts.txt"), tmp_path / "model", bf16="auto")
    monkeypatch.setattr(pretraining.LanguageModelTrainer, "__init__", train)
    with pytest.raises(Asked, match=str(bf16)):
        pretrain.main(line)

    line = [
        "--factors",
        "dropout",
        "--tokenizer",
        "bytes",
        "--train_size",
        "8",
        "--output_dir",
        str(tmp_path / "ablation"),
    ]
    with pytest.raises(Asked, match=str(bf16)):
        ablate.main(line)


@pytest.mark.parametrize(("dtype", "units"), [("bfloat16", "amx_bf16"), ("float16", "amx_fp16")])
def test_a_checkpoint_runs_in_its_own_precision_only_where_that_is_fast(dtype, units, machine, monkeypatch, tmp_path):
    saved = getattr(torch, dtype)
    SinkhornForCausalLM(tiny_sinkhorn_config(vocab_size=300)).to(saved).save_pretrained(tmp_path / "causal")
    classifier = SynthesizerForSequenceClassification(tiny_config(vocab_size=300)).to(saved)
    classifier.save_pretrained(tmp_path / "classifier")
    for name in ("causal", "classifier"):
        byte_tokenizer(13, is_causal=name == "causal").save_pretrained(tmp_path / name)
    (tmp_path / "test.jsonl").write_text('{"text": "good", "label": "LABEL_0"}\n{"text": "bad", "label": "LABEL_1"}\n')
    seen = []

    def load(*arguments, **options):
        seen.append(model := original(*arguments, **options))
        return model

    original = generation.load_whole
    for module in (generation, evaluation):
        monkeypatch.setattr(module, "load_whole", load)
    arguments = models.ModelArguments(model_name_or_path=str(tmp_path / "causal"))
    tokenizer = models.load_tokenizer(arguments, [], 13)
    for capabilities in ({units: True}, {}):
        machine(capabilities)
        trained = models.load_model(AutoModelForCausalLM, arguments, tokenizer, 13)
        assert trained.dtype == (saved if capabilities else torch.float32)
        for asked in ([], ["--dtype", dtype]):
            generate.main([str(tmp_path / "causal"), "--prompt", "a", "--max_new_tokens", "2", *asked])
            evaluate.main(
                ["classification", "--model_name_or_path", str(tmp_path / "classifier"), "--resamples", "0"]
                + ["--test_files", str(tmp_path / "test.jsonl"), *asked]
            )
    assert [model.dtype for model in seen] == [saved] * 4 + [torch.float32] * 2 + [saved] * 2
