"""Training a sort that is to be served hard: a temperature that falls while the model trains."""

from transformers import TrainerCallback

from .configuration.configuration_backbone import check_at_least
from .configuration.configuration_sinkhorn import MIN_TEMPERATURE


class AnnealSortTemperature(TrainerCallback):
    """
    A callback of the Trainer that writes `sinkhorn_temperature` of a Sinkhorn model's configuration at every step: from
    its value at the start down to `end`, by the same factor a step. The model then has the last value, or, with
    `load_best_model_at_end`, that of its best step.

        Trainer(model, arguments, callbacks=[AnnealSortTemperature(0.1)], ...)

    Args:
        end: the temperature of the last step, at least 1e-6.
        start: that of the first step; the configuration's if not given. To resume with a model that was loaded from a
            checkpoint, whose configuration has a later temperature, give it.
    """

    def __init__(self, end: float, start: float | None = None):
        check_at_least("end", end, MIN_TEMPERATURE)
        self.end = end
        self.start = start

    def temperature(self, progress: float) -> float:
        """That of a share of the training, 0 to 1."""
        return self.start * (self.end / self.start) ** progress

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if getattr(model.config, "sinkhorn_temperature", None) is None:
            raise ValueError(f"AnnealSortTemperature needs a Sinkhorn model, not {model.config.model_type!r}")
        if self.start is None:
            self.start = model.config.sinkhorn_temperature
        model.config.sinkhorn_temperature = self.temperature(state.global_step / max(1, state.max_steps - 1))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if args.load_best_model_at_end and state.best_global_step:
            progress = (state.best_global_step - 1) / max(1, state.max_steps - 1)
            model.config.sinkhorn_temperature = self.temperature(progress)
