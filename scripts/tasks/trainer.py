"""The `Trainer` of the tasks."""

from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer


class FinetuneTrainer(Trainer):
    """
    A `Trainer` that groups by the lengths that the data has, and keeps the order of what it predicts. Of
    checkpoints that are equally good, the one with the lowest loss is the best.
    """

    def _get_train_sampler(self, train_dataset=None) -> Sampler | None:
        # the Trainer would pass a dataset without its column of lengths
        return super()._get_train_sampler(self.train_dataset)

    def _get_eval_sampler(self, eval_dataset) -> Sampler | None:
        # grouped by length, predictions would not be in the order of their rows
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None

    def _determine_best_metric(self, metrics, trial) -> bool:
        is_better = super()._determine_best_metric(metrics, trial)
        name = f"eval_{(self.args.metric_for_best_model or '').removeprefix('eval_')}"
        losses = {entry["step"]: entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry}
        best = losses.get(self.state.best_global_step)
        if is_better or best is None or metrics.get(name) != self.state.best_metric or metrics["eval_loss"] >= best:
            return is_better
        self.state.best_global_step = self.state.global_step
        return True
