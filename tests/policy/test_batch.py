"""Batches: normalization, masks, blindness, missing things."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.policy.batch import BatchBuilder

HORIZON = 3
SLOTS = {"arm": list(range(7)), "base": [28, 29, 30]}


def normalizer(robot: str, seed: int) -> Normalizer:
    mask = np.zeros(32, dtype=bool)
    mask[SLOTS[robot]] = True
    return Normalizer(Statistics.from_samples(np.random.default_rng(seed).normal(size=(50, 32)), mask))


def window(robot: str, seed: int, valid_steps: int = HORIZON) -> dict:
    rng = np.random.default_rng(seed)
    slots = np.zeros(32, dtype=bool)
    slots[SLOTS[robot]] = True
    mask = np.repeat(slots[None], HORIZON, axis=0)
    mask[valid_steps:] = False
    return {
        "images": {"primary": rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)},
        "proprio": np.where(slots, rng.normal(size=32), np.nan).astype(np.float32),
        "proprio_mask": slots,
        "action": np.where(mask, rng.normal(size=(HORIZON, 32)), np.nan).astype(np.float32),
        "action_mask": mask,
        "instruction": "lift the cube" if robot == "arm" else "drive to the table and stop there",
        "robot": robot,
        "extra": {"object_pose": rng.normal(size=3), "note": "text is not collated"},
        "ids": {"step": 0},
    }


@pytest.fixture
def normalizers():
    return {"arm": (normalizer("arm", 1), normalizer("arm", 2)), "base": (normalizer("base", 3), None)}


@pytest.fixture
def builder(tiny_dir, normalizers):
    return BatchBuilder.from_pretrained(tiny_dir, normalizers)


def test_windows_of_two_robots(builder, normalizers):
    windows = [window("arm", 0, valid_steps=2), window("base", 1)]
    batch = builder.windows(windows)
    assert len(batch) == 2
    assert batch.robots == ["arm", "base"]
    assert batch.pixel_values.shape == (2, 6, 84, 84)
    assert batch.slot_mask.sum(dim=1).tolist() == [7, 3]
    assert batch.action_mask.sum(dim=(1, 2)).tolist() == [14, 9]
    wanted = normalizers["arm"][0].normalize(np.nan_to_num(windows[0]["action"][:2]))
    np.testing.assert_allclose(batch.action[0, :2], wanted, atol=1e-6)
    assert (batch.action[~batch.action_mask] == 0).all()
    wanted = normalizers["arm"][1].normalize(np.nan_to_num(windows[0]["proprio"]))
    np.testing.assert_allclose(batch.proprio[0], wanted, atol=1e-6)
    assert not batch.proprio_mask[1].any()
    assert batch.extra.keys() == {"object_pose"}
    assert batch.extra["object_pose"].dtype == torch.float32
    assert all(torch.isfinite(getattr(batch, name)).all() for name in ("action", "proprio", "pixel_values"))


def test_an_observation_gives_what_its_window_gives(builder):
    given = window("arm", 0)
    from_window = builder.windows([given])
    observation = {"images": given["images"], "prompt": given["instruction"], "state": np.zeros(8)}
    live = builder.observation(observation, "arm", given["proprio"], given["proprio_mask"])
    for name in ("input_ids", "attention_mask", "pixel_values", "proprio", "proprio_mask", "slot_mask"):
        assert torch.equal(getattr(live, name), getattr(from_window, name)), name
    assert live.action is None
    assert live.action_mask is None


def test_blind_zeroes_pixels_only(tiny_dir, normalizers, builder):
    blind = BatchBuilder.from_pretrained(tiny_dir, normalizers, blind=True).windows([window("arm", 0)])
    seeing = builder.windows([window("arm", 0)])
    assert (blind.pixel_values == 0).all()
    assert torch.equal(blind.action, seeing.action)
    assert torch.equal(blind.input_ids, seeing.input_ids)


def test_windows_are_augmented_by_sample_number_and_observations_never(tiny_dir, normalizers, builder):
    asked = []

    def augment(samples, camera, planes):
        asked.append((samples, camera))
        return planes * torch.tensor([0.1 * sample for sample in samples]).reshape(-1, 1, 1, 1)

    def view(planes):
        return planes / 4

    both = BatchBuilder.from_pretrained(tiny_dir, normalizers, view=view, augment=augment)
    served = BatchBuilder.from_pretrained(tiny_dir, normalizers, view=view)
    windows = [window("arm", row) for row in range(2)]
    for number, item in enumerate(windows, start=5):
        item["ids"]["sample"] = number
    trained = both.windows(windows)
    assert asked == [([5, 6], "primary")]
    for row, part in enumerate((0.5, 0.6)):
        images = [windows[row]["images"]["primary"]]
        wanted = builder.preprocessor(images, lambda planes, part=part: planes * part)
        torch.testing.assert_close(trained.pixel_values[row], wanted[0])
    observation = {"images": windows[0]["images"], "prompt": "go"}
    quarter = builder.preprocessor([windows[0]["images"]["primary"]], view)
    assert torch.equal(both.observation(observation, "arm").pixel_values, quarter)
    assert torch.equal(served.observation(observation, "arm").pixel_values, quarter)
    assert torch.equal(served.windows(windows[:1]).pixel_values, quarter)
    assert len(asked) == 1


def test_a_masked_camera_and_history_are_refused(builder):
    given = {**window("arm", 0), "ids": {"dataset": "d", "episode": "e", "step": 3}}
    assert builder.windows([{**given, "image_mask": {"primary": True, "wrist": False}}]).robots == ["arm"]
    with pytest.raises(ValueError, match="d: episode e step 3: no image of camera 'primary'"):
        builder.windows([{**given, "image_mask": {"primary": False}}])
    with pytest.raises(ValueError, match="holds 2 steps of history, the policy reads one"):
        builder.windows([{**given, "history_mask": np.array([False, True])}])


def test_missing_camera_names_those_present(builder):
    with pytest.raises(ValueError, match="lacks camera 'primary'; cameras there: left, wrist"):
        builder.observation(
            {"images": dict.fromkeys(("wrist", "left"), np.zeros((4, 4, 3))), "prompt": "go"}, "arm"
        )
    with pytest.raises(ValueError, match="lacks 'prompt'; wanted images and prompt, got images"):
        builder.observation({"images": {}}, "arm")


def test_unknown_robot_suggests_the_near_name(builder):
    with pytest.raises(ValueError, match="no statistics for robot 'arms'; did you mean 'arm'"):
        builder.windows([{**window("arm", 0), "robot": "arms"}])


def test_select_and_to_keep_rows_together(builder):
    batch = builder.windows([window("arm", 0), window("base", 1), window("arm", 2)])
    picked = batch.select([2, 0])
    assert picked.robots == ["arm", "arm"]
    assert torch.equal(picked.action, batch.action[[2, 0]])
    assert torch.equal(picked.extra["object_pose"], batch.extra["object_pose"][[2, 0]])
    masked = batch.select(torch.tensor([False, True, False])).to("cpu")
    assert masked.robots == ["base"]
    assert torch.equal(masked.input_ids[0], batch.input_ids[1])


def test_segments_are_each_robots_neighboring_rows(make_batch):
    batch = make_batch(robots=("franka_panda", "franka_panda", "base_only"))
    assert batch.segments() == [("franka_panda", slice(0, 2)), ("base_only", slice(2, 3))]
    part = batch.rows(slice(1, 3))
    assert part.robots == ["franka_panda", "base_only"]
    assert torch.equal(part.action, batch.action[1:])
    batch.robots = ["a", "b", "a"]
    with pytest.raises(ValueError, match="must be neighbors"):
        batch.segments()


def test_further_cameras_are_seen_where_they_are(tiny_dir, normalizers, builder):
    two = BatchBuilder.from_pretrained(tiny_dir, normalizers, more_cameras=("wrist",))
    both, one, masked = (window("arm", seed) for seed in range(3))
    both["images"]["wrist"] = both["images"]["primary"][::-1].copy()
    masked["images"]["wrist"] = np.zeros_like(masked["images"]["primary"])
    masked["image_mask"] = {"primary": True, "wrist": False}
    batch = two.windows([both, one, masked])
    assert batch.pixel_values.shape == (3, 12, 84, 84)
    assert batch.camera_mask is not None
    assert batch.camera_mask.tolist() == [[True, True], [True, False], [True, False]]
    assert torch.equal(batch.pixel_values[:, :6], builder.windows([both, one, masked]).pixel_values)
    flipped = builder.windows([{**both, "images": {"primary": both["images"]["wrist"]}}])
    assert torch.equal(batch.pixel_values[:1, 6:], flipped.pixel_values)
    live = two.observation({"images": both["images"], "prompt": "lift the cube"}, "arm")
    assert torch.equal(live.pixel_values, batch.pixel_values[:1])


def test_each_camera_is_augmented_under_its_own_name(tiny_dir, normalizers):
    asked = []

    def augment(samples, camera, planes):
        asked.append((samples, camera))
        return planes

    two = BatchBuilder.from_pretrained(tiny_dir, normalizers, augment=augment, more_cameras=("wrist",))
    given = window("arm", 0)
    given["images"]["wrist"] = given["images"]["primary"]
    given["ids"]["sample"] = 7
    two.windows([given])
    assert asked == [([7], "primary"), ([7], "wrist")]
    two.observation({"images": given["images"], "prompt": "lift the cube"}, "arm")
    assert len(asked) == 2
