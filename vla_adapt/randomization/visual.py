"""Image augmentation as OpenVLA trains with, seeded per sample, and the center crop it is served with.

The set is dlimp's `augment_kwargs` of OpenVLA: random resized crop, then brightness, contrast, saturation and
hue, on images already of the size the policy sees. In plain torch: kornia's contrast does not stretch around
each channel's own mean as TensorFlow's does, and it draws batch by batch from torch's global generator.

One thing differs on purpose: dlimp hands one seed to all its operations, so that its crops lie on the
diagonal and a brighter image always has more contrast; here every number is drawn on its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from vla_adapt.randomization.image_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation_and_hue,
    crop_and_resize,
)

OPENVLA_CROP_AREA = 0.9
_DRAWS = 8  # area, ratio, top, left, brightness, contrast, saturation, hue
_PIXELS_AT_ONCE = 1 << 17  # small enough for the processor's cache, so faster than a whole batch


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _both_ends(value: Any) -> Any:
    """A number stands for both ends; 0 for 1, the whole image."""
    return (value or 1.0,) * 2 if _is_number(value) else value


def _around_one(value: Any) -> Any:
    """x stands for 1 - x .. 1 + x."""
    return (1.0 - value, 1.0 + value) if _is_number(value) else value


def _factors(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= pair[0] <= pair[1]:
        raise ValueError(f"got {list(pair)}, wanted [low, high] with 0 <= low <= high")
    return pair


def _ratios(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError(f"got {list(pair)}, wanted [low, high] with 0 < low <= high")
    return pair


def _areas(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1] <= 1:
        raise ValueError(f"got {list(pair)}, wanted [low, high] with 0 < low <= high <= 1")
    return pair


def _switch(value: Any) -> Any:
    """`true` and `false` as OpenVLA's evaluation has them."""
    return (OPENVLA_CROP_AREA if value else 1.0) if isinstance(value, bool) else value


Factors = Annotated[tuple[float, float], BeforeValidator(_around_one), AfterValidator(_factors)]
Ratios = Annotated[tuple[float, float], BeforeValidator(_both_ends), AfterValidator(_ratios)]
Areas = Annotated[tuple[float, float], BeforeValidator(_both_ends), AfterValidator(_areas)]
CenterCropArea = Annotated[float, BeforeValidator(_switch), Field(gt=0, le=1)]


class AugmentationConfig(BaseModel):
    """Random changes of training images, by default OpenVLA's; 0 switches a part off.

    Attributes:
        enabled: of the whole.
        crop_area: [low, high] part of the area that is cut out and stretched to full size, or one number.
        crop_ratio: [low, high] width / height of the crop, in parts of the image's own, or one number.
        brightness: up to so much is added or taken away, of the full range.
        contrast: [low, high] factor around each channel's mean; x means [1 - x, 1 + x].
        saturation: [low, high] factor; x means [1 - x, 1 + x].
        hue: up to so much of a whole turn, either way.
        per_camera: whether the cameras of one sample are changed differently.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    enabled: bool = True
    crop_area: Areas = (OPENVLA_CROP_AREA, OPENVLA_CROP_AREA)
    crop_ratio: Ratios = (1.0, 1.0)
    brightness: float = Field(default=0.2, ge=0, le=1)
    contrast: Factors = (0.8, 1.2)
    saturation: Factors = (0.8, 1.2)
    hue: float = Field(default=0.05, ge=0, le=0.5)
    per_camera: bool = True

    @property
    def crops(self) -> bool:
        """Whether images are cropped at random."""
        return (self.crop_area, self.crop_ratio) != ((1.0, 1.0), (1.0, 1.0))

    @property
    def center_crop(self) -> float:
        """Area of the middle that matches the crops when served: their mean area; 1 without crops."""
        return sum(self.crop_area) / 2 if self.enabled and self.crops else 1.0


@dataclass(frozen=True)
class CenterCrop:
    """The middle `area` of every image stretched back to full size, in 8 bits.

    At 0.9 this is what OpenVLA's evaluation does with `center_crop=True`, its conversion to uint8 included.
    """

    area: float

    def __call__(self, planes: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N 3 h w"]:
        side = torch.tensor(self.area).sqrt()
        start = (1 - side) / 2
        box = torch.stack([start, start, start + side, start + side]).expand(len(planes), 4)
        cropped = crop_and_resize(planes, box)
        return cropped.mul_(255.5).floor_().clamp_(0, 255).div_(255)


@dataclass(frozen=True)
class Augmentation:
    """Random changes as a pure function of (seed, sample number, camera).

    Args:
        config: what is changed and how far.
        seed: of the run.
        view: done first where images are not cropped at random, so that they are framed as when served.
    """

    config: AugmentationConfig
    seed: int
    view: CenterCrop | None = None

    def __call__(
        self, samples: Sequence[int], camera: str, planes: Float[Tensor, "N *K 3 h w"]
    ) -> Float[Tensor, "N *K 3 h w"]:
        """Change the images of N samples; where they have K frames each, all of a sample alike.

        Args:
            samples: sample numbers (`ids["sample"]` of a window).
            camera: name of the camera.
            planes: its images in [0, 1].
        """
        frames = planes.reshape(-1, *planes.shape[-3:])
        draws = torch.from_numpy(np.stack([self.draw(number, camera) for number in samples]))
        draws = draws.repeat_interleave(len(frames) // len(samples), dim=0)
        at_once = max(1, _PIXELS_AT_ONCE // (frames.shape[2] * frames.shape[3]))
        changed = torch.empty(frames.shape)
        for first in range(0, len(frames), at_once):
            some = slice(first, first + at_once)
            changed[some] = self._changed(frames[some], draws[some])
        return changed.reshape(planes.shape)

    def draw(self, sample: int, camera: str) -> Float[np.ndarray, " 8"]:
        """Uniform numbers in [0, 1): area, ratio, top, left, brightness, contrast, saturation, hue."""
        key = (self.seed, int(sample), camera if self.config.per_camera else "")
        digest = hashlib.shake_256(repr(key).encode()).digest(8 * _DRAWS)
        return (np.frombuffer(digest, "<u8") >> 11) * 2.0**-53

    def boxes(self, draws: Float[Tensor, "N 8"]) -> Float[Tensor, "N 4"]:
        """Crops: top, left, bottom, right, as dlimp's `random_resized_crop` places them."""
        (least, most), (narrow, wide) = self.config.crop_area, np.log(self.config.crop_ratio).tolist()
        area = least + (most - least) * draws[:, 0]
        ratio = (narrow + (wide - narrow) * draws[:, 1]).exp()
        height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
        top, left = (1 - height) * draws[:, 2], (1 - width) * draws[:, 3]
        return torch.stack([top, left, top + height, left + width], dim=1).float()

    def _changed(self, planes: Float[Tensor, "N 3 h w"], draws: Float[Tensor, "N 8"]) -> Tensor:
        config = self.config
        if config.crops:
            planes = crop_and_resize(planes, self.boxes(draws))
        elif self.view is not None:
            planes = self.view(planes)
        if config.brightness:
            planes = adjust_brightness(planes, _between(-config.brightness, config.brightness, draws[:, 4]))
        if config.contrast != (1.0, 1.0):
            planes = adjust_contrast(planes, _between(*config.contrast, draws[:, 5]))
        if config.saturation != (1.0, 1.0) or config.hue:
            turn = _between(-config.hue, config.hue, draws[:, 7])
            planes = adjust_saturation_and_hue(planes, _between(*config.saturation, draws[:, 6]), turn)
        return planes


def _between(low: float, high: float, drawn: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return (low + (high - low) * drawn).float()
