"""Configuration of the Synthesizer family."""

import math
from dataclasses import field
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_backbone import BackboneConfig, check_at_least, check_choice, most_even_pair

SYNTHESIZERS = ("dot_product", "dense", "random", "fixed_random", "factorized_random", "factorized_dense")
MIXTURE_WEIGHTINGS = ("softmax", "sum")


@strict
class SynthesizerConfig(BackboneConfig):
    r"""
    Configuration of a Synthesizer (Tay et al., arXiv 2005.00743), encoder or causal language model. The fields of
    [`BackboneConfig`] and these:

    Args:
        synthesizers: what gives the attention logits: one name for a pure model or several for a mixture, out of
            `dot_product`, `dense`, `random`, `fixed_random`, `factorized_random`, `factorized_dense`.
        mixture_weighting: how a mixture adds its members' logits: `softmax` learns weights that add up to 1, per head
            and layer; `sum` adds them as they are.
        rank: rank k of `factorized_random`.
        factors: sizes [a, b] of the two factors of `factorized_dense`, a * b >= `max_position_embeddings`, a the slow
            index: column p * b + q is A[p] B[q]. `None` for the most even pair.
        synthesizer_hidden_size: width per head of the hidden layer of `dense` and `factorized_dense`; `None` for the
            head's width d / H.

    Example:

    ```python
    >>> from synkhorn import SynthesizerConfig, SynthesizerForMaskedLM
    >>> model = SynthesizerForMaskedLM(SynthesizerConfig(synthesizers=["random", "dot_product"]))
    ```
    """

    model_type: ClassVar[str] = "synthesizer"

    synthesizers: list[str] = field(default_factory=lambda: ["dense"])
    mixture_weighting: str = "softmax"
    rank: int = 8
    factors: list[int] | None = None
    synthesizer_hidden_size: int | None = None

    @property
    def factor_sizes(self) -> tuple[int, int]:
        """The two sizes (a, b) of `factorized_dense`."""
        if self.factors is None:
            return most_even_pair(self.max_position_embeddings)
        return self.factors[0], self.factors[1]

    def check_field(self, field: str, value: Any) -> None:
        super().check_field(field, value)
        if field == "synthesizers":
            if not value:
                raise ValueError(f"synthesizers={value!r} is empty: name at least one of {SYNTHESIZERS}")
            for name in value:
                check_choice("synthesizers", name, SYNTHESIZERS)
            if len(set(value)) < len(value):
                raise ValueError(f"synthesizers={value!r} names a member twice")
        elif field == "mixture_weighting":
            check_choice(field, value, MIXTURE_WEIGHTINGS)
        elif field in ("rank", "synthesizer_hidden_size") and value is not None:
            check_at_least(field, value, 1)
        elif field == "factors" and value is not None and (len(value) != 2 or min(value) < 1):
            raise ValueError(f"factors={value!r} must be two positive sizes [a, b]")

    def validate_architecture(self):
        super().validate_architecture()
        if self.position_embedding_type == "rope" and "dot_product" not in self.synthesizers:
            raise ValueError(
                "position_embedding_type='rope' rotates the queries and keys of dot_product, which "
                f"synthesizers={self.synthesizers!r} lacks: add it, or choose learned, sinusoidal or none"
            )
        if self.factors is not None:
            if "factorized_dense" not in self.synthesizers:
                raise ValueError(
                    f"factors={self.factors!r} are those of factorized_dense, which synthesizers={self.synthesizers!r} "
                    "lacks: leave them out"
                )
            if self.factors[0] * self.factors[1] < self.max_position_embeddings:
                raise ValueError(
                    f"factors={self.factors!r} cover {self.factors[0] * self.factors[1]} positions, fewer than "
                    f"max_position_embeddings={self.max_position_embeddings}"
                )

    def length_fields(self, max_position_embeddings: int) -> dict[str, Any]:
        fields = super().length_fields(max_position_embeddings)
        if "factorized_dense" in self.synthesizers:
            # b stays, so that column p * b + q keeps its meaning and every learned logit its value
            b = self.factor_sizes[1]
            fields["factors"] = [math.ceil(max_position_embeddings / b), b]
        return fields
