"""The `Trainer` of the tasks."""

from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer


class FinetuneTrainer(Trainer):
    """A `Trainer` that groups by the lengths that the data has, and keeps the order of what it predicts."""

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        # the Trainer would pass a dataset without its column of lengths
        return super()._get_train_sampler(self.train_dataset)

    def _get_eval_sampler(self, eval_dataset) -> Sampler | None:
        # grouped by length, predictions would not be in the order of their rows
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
