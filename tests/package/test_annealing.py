"""The temperature of a sort falls while the Trainer trains, step by step, and is saved with the model."""

import json

import pytest
from transformers import Trainer, TrainerCallback, TrainingArguments
from variants import random_ids, tiny_config, tiny_sinkhorn_config

from synkhorn import AnnealSortTemperature, SinkhornForMaskedLM, SynthesizerForMaskedLM


class Temperatures(TrainerCallback):
    """What the model of each step had."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seen.append(model.config.sinkhorn_temperature)


def trainer_of(model, folder, *callbacks, **more) -> Trainer:
    arguments = TrainingArguments(folder, max_steps=4, report_to=[], use_cpu=True, disable_tqdm=True, **more)
    data = [{"input_ids": ids, "labels": ids} for ids in random_ids(8, 13)]
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=list(callbacks))


def test_the_temperature_falls_by_one_factor_a_step(tmp_path):
    model, temperatures = SinkhornForMaskedLM(tiny_sinkhorn_config(sinkhorn_temperature=0.8)), Temperatures()
    trainer = trainer_of(model, tmp_path, AnnealSortTemperature(0.1), temperatures)
    trainer.train()
    assert temperatures.seen == pytest.approx([0.8, 0.4, 0.2, 0.1])
    trainer.save_model(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert saved["sinkhorn_temperature"] == pytest.approx(0.1)


def test_a_resumed_model_may_have_a_later_temperature(tmp_path):
    model, temperatures = SinkhornForMaskedLM(tiny_sinkhorn_config(sinkhorn_temperature=0.2)), Temperatures()
    trainer_of(model, tmp_path, AnnealSortTemperature(0.1, start=0.8), temperatures).train()
    assert temperatures.seen == pytest.approx([0.8, 0.4, 0.2, 0.1])


def test_the_best_model_has_the_temperature_that_it_was_measured_with(tmp_path):
    model = SinkhornForMaskedLM(tiny_sinkhorn_config(sinkhorn_temperature=0.8))
    every = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "logging_steps": 1}
    # the loss falls: the highest one is that of the first step
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = trainer_of(model, tmp_path, AnnealSortTemperature(0.1), learning_rate=1e-2, **best, **every)
    trainer.train()
    best = trainer.state.best_global_step
    assert best < 4 and model.config.sinkhorn_temperature == pytest.approx(0.8 * 0.5 ** (best - 1))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_what_cannot_be_annealed_is_named(tmp_path):
    with pytest.raises(ValueError, match="end=0"):
        AnnealSortTemperature(0)
    with pytest.raises(ValueError, match="needs a Sinkhorn model, not 'synthesizer'"):
        trainer_of(SynthesizerForMaskedLM(tiny_config()), tmp_path, AnnealSortTemperature(0.1)).train()
