"""Configuration of a family that only the tests know: FNet's mixing (Lee-Thorp et al., arXiv 2105.03824)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_backbone import BackboneConfig


@strict
class FourierConfig(BackboneConfig):
    """Fields of the backbone, and no others."""

    model_type: ClassVar[str] = "fourier"
