"""
Run in a process of its own with `HF_ENDPOINT` at the loopback Hub: pushes a model in each way that users do.

    python push.py FOLDER
"""

import sys

from datasets import Dataset
from interrupted import interrupted_training
from transformers import Trainer, TrainingArguments
from variants import randomize, tiny_config

from synkhorn import SynthesizerForSequenceClassification, byte_tokenizer, token_fields

folder = sys.argv[1]
tokenizer = byte_tokenizer(model_max_length=13)
config = tiny_config(["random", "dense"], **token_fields(tokenizer))
model = randomize(SynthesizerForSequenceClassification(config))
model.push_to_hub("user/pushed")
tokenizer.push_to_hub("user/pushed")
model.save_pretrained(f"{folder}/saved", push_to_hub=True, repo_id="user/saved")
config.save_pretrained(f"{folder}/configured", push_to_hub=True, repo_id="user/configured")
data = Dataset.from_list([{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": 1}] * 4)
arguments = TrainingArguments(
    f"{folder}/trained", hub_model_id="user/trained", max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
)
trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer)
trainer.train()
trainer.push_to_hub()
for strategy in ("every_save", "checkpoint"):
    interrupted_training(model, tokenizer, f"{folder}/{strategy}", strategy)
print("pushed")
