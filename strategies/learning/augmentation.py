"""Augmentation of a batch by torchvision's transforms, drawn from torch's global random state."""

from collections.abc import Callable, Sequence
from typing import Any, assert_never

import torch
from torch import Tensor

from strategies.augment_choice import AugmentChoice, Color, Crop, Erase, Flip, Noise, Rotate

SLICES = 8
"""A transform treats all images that it is given alike; so each of that many slices is given by itself."""


class Augmentation:
    """The transforms of raw records, before scaling, and of scaled ones."""

    def __init__(self, choices: Sequence[AugmentChoice], shape: Sequence[int]) -> None:
        images = [choice for choice in choices if not isinstance(choice, Noise)]
        self._transforms = [_transform(choice, shape) for choice in images]
        self._deviation = sum(c.deviation**2 for c in choices if isinstance(c, Noise)) ** 0.5
        self._flat = len(shape) == 2

    def of_raw(self, inputs: Tensor) -> Tensor:
        """(b, *shape) as stored -> the same, augmented."""
        if not self._transforms:
            return inputs
        return torch.cat([self._vary(part) for part in torch.chunk(inputs, SLICES)])

    def _vary(self, images: Tensor) -> Tensor:
        varied = images.unsqueeze(1) if self._flat else images
        for transform in self._transforms:
            varied = transform(varied)
        return varied.squeeze(1) if self._flat else varied

    def of_scaled(self, inputs: Tensor) -> Tensor:
        """(b, ...) as `Network.prepare` gives them -> the same, augmented."""
        return inputs + self._deviation * torch.randn_like(inputs) if self._deviation else inputs


def _transform(choice: AugmentChoice, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    height_width = tuple(shape[-2:])
    made: Any
    match choice:
        case Flip():
            made = v2.RandomHorizontalFlip(choice.probability)
        case Crop():
            made = v2.RandomCrop(height_width, padding=choice.padding or max(1, min(height_width) // 8))
        case Rotate():
            made = v2.RandomRotation(choice.degrees, interpolation=v2.InterpolationMode.BILINEAR)
        case Erase():
            made = v2.RandomErasing(choice.probability)
        case Color():
            by = choice.strength
            made = v2.ColorJitter(brightness=by, contrast=by, saturation=by, hue=by / 4)
        case Noise():
            raise AssertionError("noise is added after scaling")
        case _ as never:
            assert_never(never)
    transform: Callable[[Tensor], Tensor] = made
    return transform
