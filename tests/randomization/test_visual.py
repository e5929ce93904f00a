"""Augmentation: OpenVLA's set, seeded per sample, and (slow) TensorFlow's pixels for the same draws."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from vla_adapt.randomization.image_ops import adjust_brightness
from vla_adapt.randomization.visual import Augmentation, AugmentationConfig, CenterCrop
from vla_adapt.suggest import validate_model

OFF = {"crop_area": 0, "crop_ratio": 0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}


def pictures(count: int, side: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def configured(**changes: Any) -> AugmentationConfig:
    return AugmentationConfig.model_validate(changes)


def test_the_default_is_openvlas_set():
    config = AugmentationConfig()
    assert config.crop_area == (0.9, 0.9)
    assert config.crop_ratio == (1.0, 1.0)
    assert (config.brightness, config.hue) == (0.2, 0.05)
    assert config.contrast == config.saturation == (0.8, 1.2)


def test_numbers_stand_for_ranges():
    config = configured(crop_area=0.8, crop_ratio=[0.75, 1.25], contrast=0.25, saturation=[0.9, 1.4])
    assert config.crop_area == (0.8, 0.8)
    assert config.contrast == (0.75, 1.25)
    assert config.saturation == (0.9, 1.4)
    assert AugmentationConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"brigthness": 0.1}, "unknown key 'brigthness'; did you mean 'brightness'"),
        ({"crop_area": [0.9, 1.1]}, r"crop_area: got \[0.9, 1.1\], wanted .* high <= 1"),
        ({"crop_area": -0.5}, "crop_area: got"),
        ({"crop_ratio": [1.2, 0.8]}, r"crop_ratio: got \[1.2, 0.8\], wanted \[low, high\]"),
        ({"contrast": 1.5}, r"contrast: got \[-0.5, 2.5\]"),
        ({"saturation": True}, "saturation: got True"),
        ({"brightness": 2}, "brightness: got 2"),
        ({"hue": 0.6}, "hue: got 0.6"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        validate_model(AugmentationConfig, changes, "recipe")
    assert "\n" not in str(caught.value)


def test_zero_switches_a_part_off():
    given = pictures(2)
    assert torch.equal(Augmentation(configured(**OFF), 0)([4, 5], "primary", given), given)
    only = Augmentation(configured(**{**OFF, "brightness": 0.3}), 0)
    delta = [0.6 * only.draw(number, "primary")[4] - 0.3 for number in (4, 5)]
    wanted = adjust_brightness(given, torch.tensor(delta).float())
    torch.testing.assert_close(only([4, 5], "primary", given), wanted, atol=1e-6, rtol=0)
    whole = Augmentation(AugmentationConfig(), 0)([4, 5], "primary", given)
    for part, value in OFF.items():
        if part != "crop_ratio":  # is off already
            fewer = Augmentation(configured(**{part: value}), 0)([4, 5], "primary", given)
            assert not torch.allclose(fewer, whole), part


def test_draws_are_a_pure_function_of_seed_sample_and_camera():
    one = Augmentation(AugmentationConfig(), seed=3)
    np.testing.assert_array_equal(one.draw(7, "wrist"), pickle.loads(pickle.dumps(one)).draw(7, "wrist"))
    # Fixed: another release must not change the pixels of a run that is resumed.
    np.testing.assert_allclose(one.draw(7, "wrist")[:2], (0.8569748929240523, 0.3977453489840167))
    others = [one.draw(8, "wrist"), one.draw(7, "primary"), Augmentation(one.config, -3).draw(7, "wrist")]
    assert not any(np.allclose(one.draw(7, "wrist"), other) for other in others)
    alike = Augmentation(configured(per_camera=False), seed=3)
    np.testing.assert_array_equal(alike.draw(7, "wrist"), alike.draw(7, "primary"))


def test_draws_are_uniform_and_independent():
    one = Augmentation(AugmentationConfig(), seed=0)
    drawn = np.stack([one.draw(number, "primary") for number in range(4000)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.08  # five standard deviations
    for column in drawn.T:
        counts = np.histogram(column, bins=8, range=(0, 1))[0]
        assert np.abs(counts - 500).max() < 110


def test_crops_have_the_area_and_ratio_asked_and_lie_inside():
    config = configured(crop_area=[0.5, 0.9], crop_ratio=[0.5, 2.0])
    draws = torch.rand(500, 8, generator=torch.Generator().manual_seed(0)).double()
    top, left, bottom, right = Augmentation(config, 0).boxes(draws).unbind(1)
    height, width = bottom - top, right - left
    assert float(torch.stack([top, left]).min()) >= 0
    assert float(torch.stack([bottom, right]).max()) <= 1 + 1e-6
    inside = (height < 1) & (width < 1)
    area, ratio = (height * width)[inside], (width / height)[inside]
    assert 0.5 - 1e-6 <= float(area.min()) < 0.52
    assert float(area.max()) <= 0.9 + 1e-6
    assert 0.5 - 1e-6 <= float(ratio.min()) < 0.7
    assert 1.4 < float(ratio.max()) <= 2 + 1e-6
    openvla = Augmentation(AugmentationConfig(), 0).boxes(draws)
    torch.testing.assert_close(openvla[:, 2] - openvla[:, 0], torch.full((500,), math.sqrt(0.9)))
    assert float(openvla[:, 0].max()) <= 1 - math.sqrt(0.9)


@pytest.mark.parametrize("side", [24, 224])
def test_pixels_do_not_depend_on_the_batch_or_on_threads(side: int):
    """Ranks, workers and robots cut the same samples into other batches; workers have one thread."""
    augment = Augmentation(AugmentationConfig(), seed=1)
    given = pictures(7, side)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = augment(range(10, 17), "primary", given)
        torch.set_num_threads(2)
        alone = [augment([10 + row], "primary", given[row : row + 1]) for row in range(7)]
        turned = augment(range(16, 9, -1), "primary", given.flip(0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(alone), whole)
    assert torch.equal(turned.flip(0), whole)
    assert not torch.allclose(whole, given, atol=0.05)


def test_all_frames_of_a_sample_are_changed_alike():
    augment = Augmentation(AugmentationConfig(), seed=1)
    given = pictures(6)
    history = augment([4, 9], "primary", given.reshape(2, 3, 3, 24, 24))
    for sample, frames, changed in zip((4, 9), given.split(3), history, strict=True):
        for frame, result in zip(frames, changed, strict=True):
            assert torch.equal(augment([sample], "primary", frame[None])[0], result)


def test_without_random_crops_images_are_framed_as_when_served():
    given, view = pictures(2), CenterCrop(0.5)
    framed = Augmentation(configured(**OFF), 0, view)([1, 2], "primary", given)
    assert torch.equal(framed, view(given))
    cropped = Augmentation(AugmentationConfig(), 0, view)([1, 2], "primary", given)
    assert torch.equal(cropped, Augmentation(AugmentationConfig(), 0)([1, 2], "primary", given))


@pytest.mark.parametrize(
    ("changes", "area"),
    [({}, 0.9), ({"crop_area": [0.6, 1.0]}, 0.8), ({"crop_area": 0}, 1.0), ({"enabled": False}, 1.0)],
)
def test_the_center_crop_that_goes_with_it(changes: dict[str, Any], area: float):
    assert configured(**changes).center_crop == pytest.approx(area)


def test_center_crop_takes_the_middle_in_8_bits():
    ramp = torch.arange(101.0).div(100).expand(1, 3, 101, 101).contiguous()
    cropped = CenterCrop(0.25)(ramp)[0, 0, 50]
    np.testing.assert_allclose(cropped, np.linspace(0.25, 0.75, 101), atol=1 / 255)
    levels = cropped * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


def test_nothing_is_cropped_off_by_area_one():
    image = torch.randint(0, 256, (1, 3, 32, 32)).float() / 255
    torch.testing.assert_close(CenterCrop(1.0)(image), image, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_tensorflow_gives_the_same_pixels():
    """OpenVLA's road in dlimp's order, clipped after every step, with the numbers that were drawn."""
    tf = pytest.importorskip("tensorflow")
    augment = Augmentation(AugmentationConfig(), seed=5)
    rng = np.random.default_rng(0)
    for sample in range(6):
        # Smooth, as camera images are: bits of noise are sensitive to the last digit of the crop.
        coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.float32)
        image = tf.cast(tf.image.resize(coarse, (224, 224), "bicubic") + 0.5, tf.uint8) / 255
        given = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None]
        ours = augment([sample], "primary", given)[0].permute(1, 2, 0).numpy()
        draws = augment.draw(sample, "primary")
        box = augment.boxes(torch.from_numpy(draws)[None]).numpy()
        wanted = tf.image.crop_and_resize(tf.cast(image, tf.float32)[None], box, [0], (224, 224))[0]
        steps = (
            lambda x, u=draws: tf.image.adjust_brightness(x, -0.2 + 0.4 * u[4]),
            lambda x, u=draws: tf.image.adjust_contrast(x, 0.8 + 0.4 * u[5]),
            lambda x, u=draws: tf.image.adjust_saturation(x, 0.8 + 0.4 * u[6]),
            lambda x, u=draws: tf.image.adjust_hue(x, -0.05 + 0.1 * u[7]),
        )
        wanted = tf.clip_by_value(wanted, 0, 1)
        for step in steps:
            wanted = tf.clip_by_value(step(wanted), 0, 1)
        difference = np.abs(ours - wanted.numpy()).max() * 255
        assert difference < 0.1, f"sample {sample}: {difference} of 255 levels"


@pytest.mark.slow
def test_center_crop_is_openvlas_evaluation():
    tf = pytest.importorskip("tensorflow")
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    side = tf.sqrt(0.9)
    start = (1 - side) / 2
    box = tf.reshape(tf.stack([start, start, start + side, start + side]), (1, 4))
    floats = tf.image.convert_image_dtype(tf.convert_to_tensor(image), tf.float32)
    cropped = tf.image.crop_and_resize(floats[None], box, [0], (224, 224))[0]
    wanted = tf.image.convert_image_dtype(tf.clip_by_value(cropped, 0, 1), tf.uint8, saturate=True).numpy()
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    ours = CenterCrop(0.9)(planes)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
    difference = np.abs(ours.astype(int) - wanted.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3, "ties of rounding"
