"""The register of families: everything that the package, its commands and its tests know of a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .configuration.configuration_backbone import AUTO_CLASSES, BackboneConfig, SavedWithCode
from .configuration.configuration_sinkhorn import SinkhornConfig
from .configuration.configuration_synthesizer import SYNTHESIZERS, SynthesizerConfig
from .hub_export import export_code
from .modeling import modeling_sinkhorn, modeling_synthesizer


@dataclass(frozen=True)
class Family:
    """
    A family of models. Only its two modules and its paper must be given.

    Args:
        config_class: its configuration, called `...Config`.
        modeling: the module `modeling_{model_type}`, with a class for each of `AUTO_CLASSES`.
        paper: its source, as Markdown, for model cards.
        quickstart: fields of the quickstart's small encoder, beyond the sizes.
        own_modules: name of a source's module in a layer -> the family's own, for a warm start.
        zero_at_start: (configuration) -> endings of the names of weights that a warm start sets to zero.
        picture: the function of `scripts.measuring.pictures` that shows what a model attends to, or `None`.
        benchmark: entry of the benchmark -> its fields.
        causal_benchmark: the entries that are measured as causal models too.
    """

    config_class: type[BackboneConfig]
    modeling: ModuleType
    paper: str
    quickstart: Mapping[str, Any] = field(default_factory=dict)
    own_modules: Mapping[str, str] = field(default_factory=dict)
    zero_at_start: Callable[[Any], tuple[str, ...]] = lambda config: ()
    picture: str | None = None
    benchmark: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    causal_benchmark: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The `model_type`."""
        return self.config_class.model_type

    @property
    def title(self) -> str:
        """The beginning of its classes' names."""
        return self.config_class.__name__.removesuffix("Config")

    def model_class(self, suffix: str) -> Any:
        """Its class with a suffix out of `AUTO_CLASSES`, such as `Model` or `ForCausalLM`."""
        return getattr(self.modeling, self.title + suffix)


FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Make a family known to the commands, and to the Auto classes of Transformers."""
    transformers.AutoConfig.register(family.name, family.config_class)
    for auto, suffix in AUTO_CLASSES.items():
        getattr(transformers, auto).register(family.config_class, family.model_class(suffix))
    # by this name the Trainer knows, where it smooths labels, that they are to be shifted
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.name] = f"{family.title}ForCausalLM"
    FAMILIES[family.name] = family


def zero_beside_dot_product(config: SynthesizerConfig) -> tuple[str, ...]:
    """The weights by which a member's logits are zero, so that a mixture has those of the dot product."""
    if "dot_product" not in config.synthesizers:
        return ()
    weights = ("dense.weight", "random.weight", "factorized_random.key_weight", "factorized_dense.slow_weight")
    return tuple(f"attention.members.{weight}" for weight in weights)


SavedWithCode.export_code = staticmethod(export_code)
register(
    Family(
        SinkhornConfig,
        modeling_sinkhorn,
        paper="Tay et al., *Sparse Sinkhorn Attention*, [arXiv 2002.11296](https://arxiv.org/abs/2002.11296).",
        quickstart={"block_size": 64},
        picture="sort_picture",
        benchmark={
            "sinkhorn": {"block_size": 64},
            "sinkhorn_top2": {"block_size": 64, "sort_top_k": 2},
            "sinkhorn_block128": {"block_size": 128},
            "sinkhorn_sum": {"block_size": 64, "combine": "sum"},
            "sinkhorn_logits": {"block_size": 64, "combine": "logits"},
            "sinkhorn_sortcut": {"block_size": 64, "sortcut_blocks": 2},
            "sinkhorn_local": {"block_size": 64, "sort_net": "none"},
        },
        causal_benchmark=("sinkhorn", "sinkhorn_local"),
    )
)
MIXTURES = ("dense+dot_product", "factorized_random+dense", "random+dot_product", "factorized_dense+dot_product")
register(
    Family(
        SynthesizerConfig,
        modeling_synthesizer,
        paper="Tay et al., *Synthesizer: Rethinking Self-Attention for Transformer Models*, "
        "[arXiv 2005.00743](https://arxiv.org/abs/2005.00743).",
        quickstart={"synthesizers": ["random"]},
        own_modules={
            "attention.query": "attention.members.dot_product.query",
            "attention.key": "attention.members.dot_product.key",
        },
        zero_at_start=zero_beside_dot_product,
        picture="attention_picture",
        benchmark={entry: {"synthesizers": entry.split("+")} for entry in (*SYNTHESIZERS, *MIXTURES)},
        causal_benchmark=("dot_product", "dense", "factorized_random"),
    )
)
