"""A training that pushes each save to the loopback Hub, and is interrupted after the first."""

from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments


class Interrupt(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            raise KeyboardInterrupt


def interrupted_training(model, tokenizer, folder: str, strategy: str) -> None:
    """Train a sequence classifier with this `hub_strategy`; it is pushed as `user/` and the folder's name."""
    data = Dataset.from_list([{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": 1}] * 4)
    arguments = TrainingArguments(
        folder,
        hub_model_id=f"user/{folder.split('/')[-1]}",
        push_to_hub=True,
        hub_strategy=strategy,
        save_steps=1,
        max_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Interrupt()])
    try:
        trainer.train()
    except KeyboardInterrupt:
        trainer.push_in_progress.wait_until_done()
