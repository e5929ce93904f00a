"""Pixel values against the original, for all three resize strategies."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vla_adapt.policy.preprocess import ImagePreprocessor


@pytest.fixture(scope="module")
def configs(parity):
    return json.loads((parity.directory / "preprocessor_configs.json").read_text())


def test_parity_resize_naive(parity, configs):
    images = [parity.inputs["image0"], parity.inputs["image1"]]
    pixels = ImagePreprocessor.from_dict(configs["resize-naive"])(images)
    np.testing.assert_allclose(pixels, parity.inputs["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", ["letterbox", "resize-crop"])
def test_parity_of_the_other_strategies(parity, configs, strategy):
    pixels = ImagePreprocessor.from_dict(configs[strategy])([parity.inputs["image0"]])
    np.testing.assert_allclose(pixels, parity.expected[f"pixel_values_{strategy}"], atol=1e-6, rtol=0)


def test_folder_without_preprocessor_config_uses_config_json(parity):
    preprocessor = ImagePreprocessor.from_pretrained(parity.directory)
    pixels = preprocessor([parity.inputs["image0"], parity.inputs["image1"]])
    np.testing.assert_allclose(pixels, parity.inputs["pixel_values"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
@pytest.mark.parametrize("shape", [(84, 84), (112, 61), (30, 113), (1, 1)])
def test_any_shape_gives_the_square_and_configs_round_trip(strategy, shape):
    preprocessor = ImagePreprocessor([84, 84], strategy)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = preprocessor([image])
    assert pixels.shape == (1, 6, 84, 84)
    again = ImagePreprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    assert np.array_equal(again([image]), pixels)


def test_a_change_is_made_to_the_resized_pixels_of_both_towers():
    preprocessor = ImagePreprocessor([84, 84])
    images = [np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8) for _ in range(2)]
    seen = []

    def darker(planes):
        seen.append(planes.clone())
        return planes / 2

    changed = preprocessor(images, darker)
    assert [tuple(planes.shape) for planes in seen] == [(2, 3, 84, 84)]
    assert float(seen[0].min()) >= 0
    assert float(seen[0].max()) <= 1
    config = preprocessor.to_dict()
    for tower in range(2):
        mean, std = (torch.tensor(config[key][tower]).reshape(3, 1, 1) for key in ("means", "stds"))
        wanted = (seen[0] / 2 - mean) / std
        torch.testing.assert_close(changed[:, 3 * tower : 3 * tower + 3], wanted, atol=1e-5, rtol=0)
    assert torch.equal(preprocessor(images, lambda planes: planes), preprocessor(images))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match=r"wanted uint8 \[height, width, 3\]"):
        ImagePreprocessor([84, 84])([image])


def test_unknown_strategy_suggests_the_near_name():
    with pytest.raises(ValueError, match="did you mean 'letterbox'"):
        ImagePreprocessor([84, 84], "leterbox")
