"""PEFT: adapters of every linear map train, save and load beside a new head; what it cannot do is said."""

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from variants import random_ids, randomize, tiny_config, tiny_sinkhorn_config

CONFIGS = [tiny_config(["random", "dot_product"], num_labels=3), tiny_sinkhorn_config(num_labels=3)]
every_family = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
LABELS = {
    "SEQ_CLS": {"labels": torch.tensor([0, 2])},
    "TOKEN_CLS": {"labels": random_ids(2, 9) % 3},
    "QUESTION_ANS": {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 3])},
    "CAUSAL_LM": {"labels": random_ids(2, 9)},
}
AUTO = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "CAUSAL_LM": AutoModelForCausalLM,
}


@every_family
@pytest.mark.parametrize("task", LABELS)
def test_all_linear_adapters_save_and_load(config, task, tmp_path):
    randomize(AUTO[task].from_config(config)).save_pretrained(tmp_path / "base")
    model = AUTO[task].from_pretrained(tmp_path / "base")
    # a head that is one linear map is trained as it is; PEFT wants that said, for BERT too
    linear = {"TOKEN_CLS": ["classifier"], "QUESTION_ANS": ["qa_outputs"]}.get(task)
    lora = LoraConfig(task_type=task, target_modules="all-linear", exclude_modules=linear, init_lora_weights=False)
    tuned = get_peft_model(model, lora)
    trained = {name for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert any("lora" in name for name in trained)
    assert any("modules_to_save" in name for name in trained) == (task != "CAUSAL_LM")
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    tuned.train()(input_ids=random_ids(2, 9), **LABELS[task]).loss.backward()
    optimizer.step()
    tuned.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AUTO[task].from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    outputs, loaded = (x.eval()(input_ids=random_ids(2, 9))[0] for x in (tuned, again))
    torch.testing.assert_close(loaded, outputs)
    base = AUTO[task].from_pretrained(tmp_path / "base").eval()(input_ids=random_ids(2, 9))[0]
    assert (outputs - base).abs().max() > 1e-3


@every_family
@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS"])
def test_prefix_tuning_is_refused_and_prompt_tuning_works(config, task):
    sizes = {"task_type": task, "num_virtual_tokens": 2}
    inputs = {"input_ids": random_ids(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    tuned = get_peft_model(AUTO[task].from_config(config), PrefixTuningConfig(**sizes))
    with pytest.raises(ValueError, match="PEFT's prefix tuning.* is not supported: use LoRA or prompt tuning"):
        tuned(**inputs)
    tuned = get_peft_model(AUTO[task].from_config(config), PromptTuningConfig(**sizes))
    tuned(
        **inputs, **({"labels": torch.tensor([0, 2])} if task == "SEQ_CLS" else {"labels": inputs["input_ids"]})
    ).loss.backward()
    assert tuned.prompt_encoder["default"].embedding.weight.grad.abs().sum() > 0
