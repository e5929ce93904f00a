"""TensorFlow's `tf.image` crop and color changes in torch, each image of a batch with its own parameters.

Images are planes, float in [0, 1]; every color change clips its result to [0, 1], as dlimp does for OpenVLA.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample


def crop_and_resize(
    planes: Float[Tensor, "N 3 h w"], boxes: Float[Tensor, "N 4"]
) -> Float[Tensor, "N 3 h w"]:
    """`tf.image.crop_and_resize` back to the same size: bilinear, corners of the box onto corner pixels.

    Args:
        planes: N images.
        boxes: top, left, bottom, right as parts of the image, in [0, 1].
    """
    count, _, height, width = planes.shape
    top, left, bottom, right = (2 * boxes - 1).unbind(1)  # grid_sample counts from -1 to 1
    rows = top[:, None] + (bottom - top)[:, None] * torch.linspace(0, 1, height)
    columns = left[:, None] + (right - left)[:, None] * torch.linspace(0, 1, width)
    shape = (count, height, width)
    grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
    return grid_sample(planes, grid, padding_mode="border", align_corners=True)


def adjust_brightness(
    planes: Float[Tensor, "N 3 h w"], delta: Float[Tensor, " N"]
) -> Float[Tensor, "N 3 h w"]:
    """Add `delta`, then clip."""
    return (planes + _each(delta)).clamp_(0, 1)


def adjust_contrast(
    planes: Float[Tensor, "N 3 h w"], factor: Float[Tensor, " N"]
) -> Float[Tensor, "N 3 h w"]:
    """Stretch every channel by `factor` around its own mean over the image, then clip."""
    # Rows first: a reduction to few numbers may be split over threads, and pixels must not depend on them.
    mean = planes.sum(dim=3).sum(dim=2)[:, :, None, None] / (planes.shape[2] * planes.shape[3])
    return (planes - mean).mul_(_each(factor)).add_(mean).clamp_(0, 1)


def adjust_saturation_and_hue(
    planes: Float[Tensor, "N 3 h w"], factor: Float[Tensor, " N"], turn: Float[Tensor, " N"]
) -> Float[Tensor, "N 3 h w"]:
    """`tf.image.adjust_saturation` by `factor`, then `tf.image.adjust_hue` by `turn` (1: once around).

    In HSV terms both keep the value v; the chroma c = v * s grows by the factor up to v, and the hue h (here
    0..6) is turned. Comparisons are written as arithmetic: `torch.where` takes 20 times as long as a product.
    """
    red, green, blue = planes.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    per_chroma = chroma.clamp_min(1e-12).reciprocal_()
    hue = (red - green).mul_(per_chroma).add_(4)
    for offset, largest, difference in ((2, green, blue - red), (0, red, green - blue)):
        here = difference.mul_(per_chroma).add_(offset)
        hue.add_(here.sub_(hue).mul_(largest.clone().eq_(value)))
    hue.add_(6 * turn[:, None, None])
    hue.sub_((hue / 6).floor_().mul_(6))
    chroma = torch.minimum(chroma.mul_(factor[:, None, None]), value)
    lack_red = (hue - 3).abs_().neg_().add_(2)
    lack_green = (hue - 2).abs_().sub_(1)
    lack_blue = hue.sub_(4).abs_().sub_(1)
    lacks = torch.stack([lack_red, lack_green, lack_blue], dim=1).clamp_(0, 1)
    return value[:, None] - lacks.mul_(chroma[:, None])


def _each(numbers: Float[Tensor, " N"]) -> Float[Tensor, "N 1 1 1"]:
    return numbers[:, None, None, None]
