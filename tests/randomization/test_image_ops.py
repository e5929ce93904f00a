"""Image operations against plain numpy and colorsys, and (slow) against TensorFlow's own."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from vla_adapt.randomization.image_ops import (
    adjust_brightness,
    adjust_contrast,
    adjust_saturation_and_hue,
    crop_and_resize,
)

BOXES = ((0.0, 0.0, 1.0, 1.0), (0.02, 0.05, 0.96, 0.99), (0.3, 0.1, 0.7, 0.9))


def planes(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth and rough images with gray, black, white and pure colors among their pixels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, height, width, 3))
    images[:, : height // 2] = np.linspace(0, 255, width)[:, None].astype(int)  # a gray ramp
    corners = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]])
    images[:, -1, :6] = corners
    return torch.from_numpy(images / 255).float().permute(0, 3, 1, 2).contiguous()


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def bilinear(image: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    """Crop and resize one plane by its definition, pixel by pixel."""
    height, width = image.shape
    out = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            y = (box[0] + (box[2] - box[0]) * row / (height - 1)) * (height - 1)
            x = (box[1] + (box[3] - box[1]) * column / (width - 1)) * (width - 1)
            up, left = min(int(y), height - 2), min(int(x), width - 2)
            below, right = y - up, x - left
            top = image[up, left] * (1 - right) + image[up, left + 1] * right
            bottom = image[up + 1, left] * (1 - right) + image[up + 1, left + 1] * right
            out[row, column] = top * (1 - below) + bottom * below
    return out


def test_crop_by_its_definition():
    given = planes(3, 9, 12)
    got = crop_and_resize(given, torch.tensor(BOXES))
    for image, box, result in zip(given, BOXES, got, strict=True):
        for channel in range(3):
            wanted = bilinear(image[channel].double().numpy(), box)
            np.testing.assert_allclose(result[channel], wanted, atol=1e-5)


def test_brightness_and_contrast_by_their_definition():
    given = planes(2, 6, 8)
    bright = adjust_brightness(given, numbers(0.2, -0.1))
    np.testing.assert_allclose(bright[0], np.minimum(given[0] + 0.2, 1), atol=1e-6)
    np.testing.assert_allclose(bright[1], np.maximum(given[1] - 0.1, 0), atol=1e-6)
    stretched = adjust_contrast(given, numbers(1.2, 0.5))
    for image, factor, result in zip(given.double().numpy(), (1.2, 0.5), stretched, strict=True):
        mean = image.mean(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(result, np.clip((image - mean) * factor + mean, 0, 1), atol=1e-6)


@pytest.mark.parametrize(("factor", "turn"), [(1.0, 0.0), (0.8, 0.0), (1.3, 0.05), (1.0, -0.4), (0.0, 0.2)])
def test_saturation_and_hue_by_colorsys(factor: float, turn: float):
    given = planes(1, 6, 8)
    got = adjust_saturation_and_hue(given, numbers(factor), numbers(turn))
    for pixel, result in zip(given[0].flatten(1).T.tolist(), got[0].flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        wanted = colorsys.hsv_to_rgb((hue + turn) % 1, min(saturation * factor, 1), value)
        np.testing.assert_allclose(result, wanted, atol=2e-6)


def test_inputs_are_left_alone():
    given = planes(2, 6, 8)
    before = given.clone()
    adjust_brightness(given, numbers(0.1, 0.1))
    adjust_contrast(given, numbers(0.5, 0.5))
    adjust_saturation_and_hue(given, numbers(0.5, 0.5), numbers(0.1, 0.1))
    crop_and_resize(given, torch.tensor(BOXES[:2]))
    assert torch.equal(given, before)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_tensorflow_agrees(seed: int):
    tf = pytest.importorskip("tensorflow")
    given = planes(1, 61, 84, seed)
    image = given[0].permute(1, 2, 0).numpy()
    box = torch.tensor(BOXES[seed : seed + 1])
    up, less, turn = 0.17 - 0.1 * seed, 0.81 + 0.15 * seed, 0.05 - 0.04 * seed
    one = numbers(1.0)
    pairs = {
        "crop": (
            crop_and_resize(given, box),
            tf.image.crop_and_resize(image[None], box.numpy(), [0], image.shape[:2])[0],
        ),
        "brightness": (adjust_brightness(given, numbers(up)), tf.image.adjust_brightness(image, up)),
        "contrast": (adjust_contrast(given, numbers(less)), tf.image.adjust_contrast(image, less)),
        "saturation": (
            adjust_saturation_and_hue(given, numbers(less), numbers(0.0)),
            tf.image.adjust_saturation(image, less),
        ),
        "hue": (adjust_saturation_and_hue(given, one, numbers(turn)), tf.image.adjust_hue(image, turn)),
    }
    for name, (ours, theirs) in pairs.items():
        wanted = np.clip(theirs.numpy(), 0, 1)
        difference = np.abs(ours[0].permute(1, 2, 0).numpy() - wanted).max() * 255
        assert difference < 0.02, f"{name}: {difference} of 255 levels"
