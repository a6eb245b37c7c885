"""Augmentations of records during training, with their settings. Imports no torch."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class _Augment(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def problem(self, shape: Sequence[int], dtype: str) -> str | None:
        """Why records of this shape and type cannot be augmented this way; None: they can."""
        return None


class _OfImages(_Augment):
    def problem(self, shape: Sequence[int], dtype: str) -> str | None:
        if len(shape) not in (2, 3):
            name = type(self).model_fields["name"].default
            return (
                f"augment {name} takes images of shape (channels, height, width) or (height, width); "
                f"the records have shape {list(shape)}"
            )
        return None


class Flip(_OfImages):
    """Left and right are exchanged, or not."""

    name: Literal["flip"] = "flip"
    probability: float = Field(0.5, ge=0, le=1, description="How often images are mirrored.")


class Crop(_OfImages):
    """Images are moved by up to `padding` pixels each way; what comes in is zero."""

    name: Literal["crop"] = "crop"
    padding: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Pixels that an image moves, at most; unset is an eighth of its shorter side."
    )


class Rotate(_OfImages):
    """Images are turned about their middle."""

    name: Literal["rotate"] = "rotate"
    degrees: float = Field(15.0, gt=0, le=180, description="Degrees that an image turns each way, at most.")


class Erase(_OfImages):
    """A rectangle of an image is set to zero (Zhong et al., arXiv:1708.04896)."""

    name: Literal["erase"] = "erase"
    probability: float = Field(0.25, ge=0, le=1, description="How often a rectangle is erased.")


class Color(_OfImages):
    """Brightness, contrast, saturation and hue vary."""

    name: Literal["color"] = "color"
    strength: float = Field(
        0.2, gt=0, le=1, description="Share by which the first three vary; hue varies by a quarter of it."
    )

    def problem(self, shape: Sequence[int], dtype: str) -> str | None:
        if len(shape) != 3 or shape[0] != 3 or dtype != "uint8":
            return (
                "augment color takes images of uint8 and shape (3, height, width); the records are "
                f"{dtype} of shape {list(shape)}"
            )
        return None


class Noise(_Augment):
    """Normal noise on every feature, once features are scaled."""

    name: Literal["noise"] = "noise"
    deviation: float = Field(0.1, gt=0, le=10, description="In standard deviations of the feature.")


def _with_name(given: Any) -> Any:
    """A bare name is that augmentation with its defaults."""
    return {"name": given} if isinstance(given, str) else given


AugmentChoice = Annotated[
    Flip | Crop | Rotate | Erase | Color | Noise, Field(discriminator="name"), BeforeValidator(_with_name)
]
