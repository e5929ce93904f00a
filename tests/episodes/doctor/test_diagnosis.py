"""The doctor finds every planted defect by its code, and nothing in clean data of several robots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, MemoryDataset, fake_data, open_dataset
from vla_adapt.episodes.doctor.diagnosis import Diagnosis, examine
from vla_adapt.episodes.doctor.doctor_finding import Finding

EPISODES = 10
ROBOTS = [
    "franka_panda",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("bimanual_panda", "widowx")),
]
TASKS = ("pick up the cup", "put the carrot on the plate", "stack the blocks", "open the drawer")
Episodes = list[EpisodeData]


def smooth(points: np.ndarray, legs: list[int]) -> np.ndarray:
    """Minimum-jerk interpolation: legs[i] steps from point i to point i + 1; [sum(legs) + 1, F]."""
    rows = [points[:1]]
    for a, b, steps in zip(points[:-1], points[1:], legs, strict=True):
        s = np.arange(1, steps + 1)[:, None] / steps
        rows.append(a + (b - a) * (10 * s**3 - 15 * s**4 + 6 * s**5))
    return np.concatenate(rows)


def arm(robot: str, rng: np.random.Generator, legs: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(action [T, 7], state [T, 7 or 8], positions [T, 3]) of one arm picking something up and placing it."""
    positions = smooth(rng.uniform([0.3, -0.1, 0.15], [0.45, 0.1, 0.3], (len(legs) + 1, 3)), legs)
    down = (
        Rotation.from_euler("xyz", [180, 0, 90], degrees=True) if robot != "widowx" else Rotation.identity()
    )
    keys = Rotation.from_rotvec(rng.uniform(-0.5, 0.5, (len(legs) + 1, 3))) * down
    turns = Slerp(np.cumsum([0, *legs]), keys)(np.arange(sum(legs) + 1))
    opening = np.ones(sum(legs))
    opening[legs[0] + 2 : sum(legs[:3])] = 0
    measured = np.ones(sum(legs))
    for t in range(1, len(measured)):
        measured[t] = measured[t - 1] + 0.5 * (opening[t - 1] - measured[t - 1])
    delta = positions[1:] - positions[:-1]
    turn = (turns[1:] * turns[:-1].inv()).as_rotvec()
    noise = 1 + 0.03 * rng.normal(size=(len(delta), 6))
    now, at = turns[:-1], positions[:-1]
    if robot == "widowx":
        turn = Rotation.from_rotvec(turn).as_euler("xyz")
        action = np.column_stack([np.column_stack([delta, turn]) * noise, opening])
        return action, np.column_stack([at, now.as_euler("xyz"), measured]), at
    action = np.column_stack([np.column_stack([delta / 0.05, turn / 0.5]) * noise, 1 - 2 * opening])
    return action, np.column_stack([at, now.as_quat(), measured]), at


def pictures(rng: np.random.Generator, positions: np.ndarray, size: int = 40) -> np.ndarray:
    """A wooden table with camera noise, and a dark hand that moves over it."""
    rows, columns = np.mgrid[:size, :size]
    grain = 12 * np.sin(columns / 3 + rng.uniform(0, 6)) + 5 * rng.normal(size=(size, size))
    table = np.array([165, 130, 90]) + grain[..., None]
    images = []
    for x, y, z in positions:
        image = table + 4 * rng.normal(size=(size, size, 1))
        hand = (rows - size * (0.2 + x)) ** 2 + (columns - size * (0.5 + y)) ** 2 < (3 + 8 * z) ** 2
        image[hand] = 50
        images.append(image.clip(0, 255).astype(np.uint8))
    return np.stack(images)


def clean(robot: str, seed: int = 0) -> Episodes:
    """Episodes whose deltas integrate to their states, with gripper motion, words, times and images."""
    rng = np.random.default_rng(seed)
    rate, episodes = Embodiment.load(robot).rate_hz, []
    for i in range(EPISODES):
        arms, legs = [], [int(n) for n in rng.integers(8, 14, 5)]
        for _ in range(2 if robot == "bimanual_panda" else 1):
            arms.append(arm(robot, rng, legs))
        cameras = ("primary", "wrist") if robot == "franka_panda" else ("primary",)
        steps = sum(legs)
        episodes.append(
            EpisodeData(
                action=np.concatenate([one[0] for one in arms], axis=1).astype(np.float32),
                state=np.concatenate([one[1] for one in arms], axis=1).astype(np.float32),
                images={camera: pictures(rng, arms[0][2]) for camera in cameras},
                instruction=TASKS[i % len(TASKS)],
                extra={
                    "timestamp": (np.arange(steps) / rate).astype(np.float32),
                    "is_last": np.arange(steps) == steps - 1,
                },
            )
        )
    return episodes


@pytest.fixture(scope="module", params=ROBOTS)
def robot(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def healthy(robot: str) -> Episodes:
    return clean(robot)


def copied(episodes: Episodes) -> Episodes:
    return [
        EpisodeData(
            action=data.action.copy(),
            state=None if data.state is None else data.state.copy(),
            images={camera: np.array(images) for camera, images in data.images.items()},
            instruction=data.instruction,
            extra={key: values.copy() for key, values in data.extra.items()},
        )
        for data in episodes
    ]


def diagnose(robot: str, episodes: Episodes) -> Diagnosis:
    return examine([MemoryDataset("planted", Embodiment.load(robot), episodes)], images=32)


def serious(found: Diagnosis) -> dict[str, Finding]:
    """Errors and warnings by code."""
    return {finding.code: finding for finding in found.findings if finding.severity != "note"}


# Where the last arm's numbers lie: the right one of one, the left one of two.
def columns(robot: str) -> tuple[slice, slice, int]:
    """Action columns of position, rotation and gripper of the last arm."""
    start = 7 if robot == "bimanual_panda" else 0
    return slice(start, start + 3), slice(start + 3, start + 6), start + 6


def state_columns(robot: str) -> tuple[slice, slice, int]:
    """The same of the state."""
    start, width = (8 if robot == "bimanual_panda" else 0), 3 if robot == "widowx" else 4
    return slice(start, start + 3), slice(start + 3, start + 3 + width), start + 3 + width


def meters(robot: str) -> float:
    return 1.0 if robot == "widowx" else 0.05


def turns_of(robot: str, data: EpisodeData) -> Rotation:
    assert data.state is not None
    numbers = data.state[:, state_columns(robot)[1]]
    return Rotation.from_euler("xyz", numbers) if robot == "widowx" else Rotation.from_quat(numbers)


def flip_gripper(robot: str, episodes: Episodes) -> None:
    column = columns(robot)[2]
    for data in episodes:
        values = data.action[:, column]
        data.action[:, column] = 1 - values if robot == "widowx" else -values


def flip_both_grippers(robot: str, episodes: Episodes) -> None:
    flip_gripper(robot, episodes)
    column = state_columns(robot)[2]
    for data in episodes:
        data.state[:, column] = 1 - data.state[:, column]


def gripper_in_bytes(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.action[:, columns(robot)[2]] = 255 * (data.action[:, columns(robot)[2]] > 0.5)


def gripper_width_in_meters(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.state[:, state_columns(robot)[2]] *= 0.08


def dead_rotation(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.action[:, columns(robot)[1].start] = 0


def nearly_dead_rotation(robot: str, episodes: Episodes) -> None:
    for i, data in enumerate(episodes):
        kept = data.action[10, columns(robot)[1].start]
        data.action[:, columns(robot)[1].start] = 0
        if i < 3:
            data.action[10, columns(robot)[1].start] = kept + 0.1


def stand_still(robot: str, episodes: Episodes) -> None:
    """Wait 30 steps in the middle of each episode."""
    for data in episodes:
        wait = np.r_[:25, [25] * 30, 25 : len(data)]
        idle = slice(25, 55)
        data.action, data.state = data.action[wait].copy(), data.state[wait].copy()
        for arm in range(data.action.shape[1] // 7):
            data.action[idle, 7 * arm : 7 * arm + 6] = 0
        data.images = {camera: images[wait] for camera, images in data.images.items()}
        rate = Embodiment.load(robot).rate_hz
        data.extra = {"timestamp": (np.arange(len(data)) / rate).astype(np.float32)}


def state_jumps(robot: str, episodes: Episodes) -> None:
    episodes[3].state[7, state_columns(robot)[0].start] += 20


def nan_action(robot: str, episodes: Episodes) -> None:
    episodes[2].action[5, 1] = np.nan


def infinite_state(robot: str, episodes: Episodes) -> None:
    episodes[2].state[5, 0] = np.inf


def beyond_limits(robot: str, episodes: Episodes) -> None:
    for data in episodes[:4]:
        data.action[3:5, columns(robot)[0].start] = 1.4


def no_quaternion(robot: str, episodes: Episodes) -> None:
    episodes[1].state[4:9, state_columns(robot)[1]] = 0


def other_rate(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.extra["timestamp"] *= 2


def time_backwards(robot: str, episodes: Episodes) -> None:
    episodes[5].extra["timestamp"][10:12] = episodes[5].extra["timestamp"][[11, 10]]


def dropped_frames(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.extra["timestamp"][20:] += 1
        data.extra["timestamp"][30:] += 2


def absolute(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        place = data.state[:, state_columns(robot)[0]]
        data.action[:, columns(robot)[0]] = np.concatenate([place[1:], place[-1:]])


def turned_about_z(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        x, y, z = data.action[:, columns(robot)[0]].T.copy()
        data.action[:, columns(robot)[0]] = np.stack([y, -x, z], axis=1)


def mirrored(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.action[:, columns(robot)[0].start + 1] *= -1


def swapped_euler(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.action[:, columns(robot)[1]] = data.action[:, columns(robot)[1]][:, ::-1].copy()


def tool_frame(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        turns = turns_of(robot, data)
        for part in columns(robot)[:2]:
            data.action[:, part] = turns.apply(data.action[:, part], inverse=True)


def late(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.action[1:] = data.action[:-1].copy()


def too_small(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.action[:, columns(robot)[0]] *= 0.01


def shuffled(robot: str, episodes: Episodes) -> None:
    rng = np.random.default_rng(3)
    for data in episodes:
        part = slice(columns(robot)[0].start, columns(robot)[1].stop)
        data.action[:, part] = rng.permutation(data.action[:, part])


def bgr(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.images = {**data.images, "primary": data.images["primary"][..., ::-1].copy()}


def black(robot: str, episodes: Episodes) -> None:
    for data in episodes[::3]:
        data.images["primary"][:] = 0


def plain(robot: str, episodes: Episodes) -> None:
    for data in episodes[::3]:
        data.images["primary"][:] = (120, 100, 90)


def frozen(robot: str, episodes: Episodes) -> None:
    for data in episodes[::3]:
        data.images["primary"][:] = data.images["primary"][0]


def undecodable(robot: str, episodes: Episodes) -> None:
    episodes[0].images = {**episodes[0].images, "primary": [b"no image"] * len(episodes[0])}


def other_size(robot: str, episodes: Episodes) -> None:
    for data in episodes[::2]:
        data.images["primary"] = data.images["primary"][:, :30]


def no_words(robot: str, episodes: Episodes) -> None:
    for data in episodes[:3]:
        data.instruction = "  "


def twice(robot: str, episodes: Episodes) -> None:
    episodes.append(copied(episodes[4:5])[0])


def nearly_twice(robot: str, episodes: Episodes) -> None:
    twice(robot, episodes)
    episodes[-1].action += np.float32(1e-6) * np.random.default_rng(0).normal(size=episodes[-1].action.shape)
    episodes[-1].action = episodes[-1].action.astype(np.float32)


def cut_short(robot: str, episodes: Episodes) -> None:
    data = episodes[6]
    data.action, data.state = data.action[:3], data.state[:3]
    data.images = {camera: images[:3] for camera, images in data.images.items()}
    data.extra = {"timestamp": data.extra["timestamp"][:3], "is_last": np.array([False, False, True])}


def without_end(robot: str, episodes: Episodes) -> None:
    episodes[7].extra["is_last"][:] = False


def one_without_state(robot: str, episodes: Episodes) -> None:
    episodes[3].state = None


def no_primary(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.images = {"side": data.images["primary"]}


def narrow_state(robot: str, episodes: Episodes) -> None:
    """The measured hand hardly ever moves."""
    column = state_columns(robot)[2]
    for i, data in enumerate(episodes):
        data.state[:, column] = 1
        data.state[10, column] = 0.4 if i < 3 else 1


def none_with_end(robot: str, episodes: Episodes) -> None:
    for data in episodes:
        data.extra["is_last"][:] = False


def half_flipped(robot: str, episodes: Episodes) -> None:
    flip_gripper(robot, episodes[::2])


def some_flipped(robot: str, episodes: Episodes) -> None:
    flip_gripper(robot, episodes[2:5])


def some_in_tool_frame(robot: str, episodes: Episodes) -> None:
    tool_frame(robot, episodes[2:6])


def some_mirrored(robot: str, episodes: Episodes) -> None:
    mirrored(robot, episodes[2:4])


def some_at_half_rate(robot: str, episodes: Episodes) -> None:
    other_rate(robot, episodes[2:5])


def some_bgr(robot: str, episodes: Episodes) -> None:
    bgr(robot, episodes[2:6])


def few_with_both_grippers_flipped(robot: str, episodes: Episodes) -> None:
    del episodes[5:]
    flip_both_grippers(robot, episodes)


PLANTS: list[tuple[Callable[[str, Episodes], None], str]] = [
    (flip_gripper, "gripper_sign"),
    (flip_both_grippers, "gripper_starts_closed"),
    (gripper_in_bytes, "gripper_scale"),
    (gripper_width_in_meters, "gripper_scale"),
    (dead_rotation, "dead_dimension"),
    (nearly_dead_rotation, "narrow_quantiles"),
    (stand_still, "idle_frames"),
    (state_jumps, "outliers"),
    (nan_action, "non_finite"),
    (infinite_state, "non_finite"),
    (no_quaternion, "bad_quaternion"),
    (beyond_limits, "beyond_limits"),
    (other_rate, "control_rate"),
    (time_backwards, "time_not_increasing"),
    (dropped_frames, "time_gaps"),
    (absolute, "absolute_actions"),
    (turned_about_z, "axes_mismatch"),
    (mirrored, "axes_mismatch"),
    (swapped_euler, "axes_mismatch"),
    (tool_frame, "frame_mismatch"),
    (late, "action_lag"),
    (too_small, "action_scale"),
    (shuffled, "not_integrable"),
    (bgr, "bgr_images"),
    (black, "black_images"),
    (plain, "plain_images"),
    (frozen, "frozen_images"),
    (undecodable, "undecodable_image"),
    (other_size, "image_sizes"),
    (no_words, "empty_instruction"),
    (twice, "duplicate_episodes"),
    (nearly_twice, "near_duplicate_episodes"),
    (cut_short, "short_episodes"),
    (without_end, "truncated_episodes"),
    (one_without_state, "uneven_parts"),
    (no_primary, "missing_camera"),
    (narrow_state, "narrow_quantiles"),
    (none_with_end, "truncated_episodes"),
    (half_flipped, "gripper_sign"),
    (some_flipped, "gripper_sign"),
    (some_in_tool_frame, "frame_mismatch"),
    (some_mirrored, "axes_mismatch"),
    (some_at_half_rate, "control_rate"),
    (some_bgr, "bgr_images"),
    (few_with_both_grippers_flipped, "gripper_starts_closed"),
]
# What a robot's declaration says nothing about cannot be at odds with it.
NOT_FOR = {"widowx": {no_quaternion, beyond_limits}}


def test_silent_on_clean_data(robot: str, healthy: Episodes) -> None:
    found = diagnose(robot, healthy)
    assert serious(found) == {}
    (examined,) = found.examined
    assert (examined.episodes, examined.steps) == (EPISODES, sum(len(data) for data in healthy))


@pytest.mark.parametrize(("plant", "code"), PLANTS, ids=[plant.__name__ for plant, _ in PLANTS])
def test_planted_defect_is_found_and_nothing_else(
    robot: str, healthy: Episodes, plant: Callable[[str, Episodes], None], code: str
) -> None:
    if plant in NOT_FOR.get(robot, ()):
        pytest.skip(f"{robot} declares nothing for this")
    episodes = copied(healthy)
    plant(robot, episodes)
    assert set(serious(diagnose(robot, episodes))) == {code}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_part_of_clean_data_is_odd(robot: str, seed: int) -> None:
    assert serious(diagnose(robot, clean(robot, seed))) == {}


@pytest.mark.parametrize(
    ("plant", "code", "ids"),
    [
        (half_flipped, "gripper_sign", ["0", "2", "4", "6", "8"]),
        (some_flipped, "gripper_sign", ["2", "3", "4"]),
        (some_in_tool_frame, "frame_mismatch", ["2", "3", "4", "5"]),
        (some_mirrored, "axes_mismatch", ["2", "3"]),
        (some_at_half_rate, "control_rate", ["2", "3", "4"]),
        (some_bgr, "bgr_images", ["2", "3", "4", "5"]),
    ],
)
def test_episodes_unlike_the_rest_are_named(
    plant: Callable[[str, Episodes], None], code: str, ids: list[str]
) -> None:
    episodes = clean("franka_panda")
    plant("franka_panda", episodes)
    found = examine([MemoryDataset("merged", Embodiment.load("franka_panda"), episodes)], images=40)
    (finding,) = {finding.code: finding for finding in found.findings if finding.code == code}.values()
    assert finding.numbers["episodes"] == ids
    assert f"{len(ids)} of 10 episodes" in finding.evidence
    assert finding.severity == ("warning" if code == "bgr_images" else "error")


def test_too_few_episodes_and_steps_are_said_to_be() -> None:
    episodes = clean("franka_panda")[:1]
    flip_both_grippers("franka_panda", episodes)
    found = diagnose("franka_panda", episodes)
    assert serious(found) == {}
    notes = {finding.code: finding.evidence for finding in found.findings}
    assert "1 of 1 episodes in which the gripper moves" in notes["gripper_starts_closed"]
    assert "(too few to tell)" in notes["gripper_starts_closed"]
    assert f"only {steps_of(episodes)} steps examined" in notes["few_steps"]


def one(robot: str, episodes: Episodes, code: str) -> Finding:
    return serious(diagnose(robot, episodes))[code]


def test_evidence_names_what_was_measured() -> None:
    """Numbers in the findings are those planted."""
    healthy = clean("franka_panda")

    def planted(plant: Callable[[str, Episodes], None], code: str) -> Finding:
        episodes = copied(healthy)
        plant("franka_panda", episodes)
        return one("franka_panda", episodes, code)

    turned = planted(turned_about_z, "axes_mismatch")
    # The stored action is the motion turned by -90 deg, so the motion is the action turned by +90 deg.
    assert "1.00 x the motion like (-y, x, z), turned by 90 deg about +z" in turned.evidence
    np.testing.assert_allclose(turned.numbers["turn"], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=0.05)
    assert planted(mirrored, "axes_mismatch").evidence.count("like (x, -y, z), a mirror image") == 1
    scale = planted(too_small, "action_scale")
    assert (scale.severity, scale.numbers["scale"]) == ("error", pytest.approx(100, rel=0.02))
    assert planted(late, "action_lag").numbers["lag"] == -1
    rate = planted(other_rate, "control_rate")
    assert "10 Hz, declared are 20 Hz" in rate.evidence
    assert rate.numbers["measured_hz"] == pytest.approx(10, rel=1e-4)
    gripper = planted(gripper_in_bytes, "gripper_scale")
    assert "native numbers run from 0 to 255, declared open = -1, closed = 1" in gripper.evidence
    nan = planted(nan_action, "non_finite")
    assert "action holds NaN or infinity in 1 of" in nan.evidence
    assert "first at episode 2 step 5" in nan.evidence
    assert nan.numbers["columns"] == [1]
    jump = planted(state_jumps, "outliers")
    assert "right_ee_position.x" in jump.evidence
    assert jump.evidence.endswith("at episode 3 step 7")
    idle = planted(stand_still, "idle_frames")
    # In the first of the 30 steps the hand has just moved.
    share = 29 * EPISODES / (steps_of(healthy) + 30 * EPISODES)
    assert idle.numbers["idle_share"] == pytest.approx(share, abs=0.005)
    assert "in 10 of 10 episodes" in idle.evidence
    assert planted(twice, "duplicate_episodes").numbers["groups"] == [["4", str(EPISODES)]]
    (pair,) = planted(nearly_twice, "near_duplicate_episodes").numbers["pairs"]
    assert set(pair) == {"4", str(EPISODES)}
    short = planted(cut_short, "short_episodes")
    assert "1 of 10 episodes (10 %) (6) are very short: 3 to 3 steps" in short.evidence
    assert planted(no_words, "empty_instruction").numbers["episodes"] == ["0", "1", "2"]
    assert planted(other_size, "image_sizes").numbers["sizes"] == [[30, 40], [40, 40]]
    lost = planted(undecodable, "undecodable_image")
    assert "episode 0 step 0 camera 'primary'" in lost.evidence


def steps_of(episodes: Episodes) -> int:
    return sum(len(data) for data in episodes)


def test_slow_robot_is_noted_and_one_instruction_too() -> None:
    episodes = clean("franka_panda")
    for data in episodes:
        data.instruction = "pick up the cup"
        data.action[:-2] = data.action[2:].copy()
    found = diagnose("franka_panda", episodes)
    assert serious(found) == {}
    notes = {finding.code: finding for finding in found.findings}
    assert {"one_instruction", "action_lag"} <= set(notes)
    assert notes["action_lag"].numbers["lag"] == 2


def test_first_dummy_action_is_noted() -> None:
    episodes = clean("widowx")
    for data in episodes:
        data.action[0, :6] = 0
        data.action[1, :6] = 0.02
    (note,) = [f for f in diagnose("widowx", episodes).findings if f.code == "dummy_first_action"]
    assert (note.severity, note.numbers) == ("note", {"first": EPISODES, "second": 0})


def test_wrapped_euler_differences_are_recognized() -> None:
    episodes = clean("widowx")
    episodes[1].action[4, 5] = -6.2
    episodes[1].action[9, 3] = 3.1
    assert "without wrapping" in one("widowx", episodes, "outliers").advice


def joint_robot() -> Embodiment:
    robot = Embodiment.load("franka_panda")
    joints = {"name": "joints", "slots": "right_joints", "unit": "rad"}
    tree = robot.model_dump(mode="json", exclude_none=True)
    return Embodiment.model_validate(tree | {"name": "joints", "action": [joints], "proprio": [joints]})


@pytest.mark.parametrize("deltas", [False, True])
def test_joint_order_sign_and_unit(deltas: bool) -> None:
    rng, robot = np.random.default_rng(0), joint_robot()

    def diagnosed(change: Callable[[np.ndarray], np.ndarray]) -> dict[str, Finding]:
        episodes = []
        for _ in range(6):
            angles = smooth(rng.uniform(-1, 1, (5, 7)), [12] * 4).astype(np.float32)
            action = angles[1:] - angles[:-1] if deltas else angles[1:]
            images = {"primary": pictures(rng, np.zeros((48, 3)) + rng.normal(size=(48, 1)) * 0.1)}
            episodes.append(EpisodeData(change(action.copy()), images, f"task {len(episodes)}", angles[:-1]))
        return serious(examine([MemoryDataset("joints", robot, episodes)], images=8))

    assert diagnosed(lambda action: action) == {}
    swapped = diagnosed(lambda action: action[:, [0, 2, 1, 3, 4, 5, 6]])
    assert set(swapped) == {"joint_mismatch"}
    assert "right_joints.j2 drives right_joints.j3" in swapped["joint_mismatch"].evidence
    flipped = diagnosed(lambda action: action * np.float32([1, 1, 1, -1, 1, 1, 1]))
    assert "right_joints.j4 drives -right_joints.j4" in flipped["joint_mismatch"].evidence
    degrees = diagnosed(lambda action: np.degrees(action))
    assert set(degrees) == {"action_scale"}
    assert "0.0175 rad for each commanded rad" in degrees["action_scale"].evidence


def test_shared_episodes_and_colors_side_by_side() -> None:
    robot, episodes = Embodiment.load("franka_panda"), clean("franka_panda")
    other = clean("franka_panda", seed=1)
    bgr("franka_panda", other)
    other.append(copied(episodes[2:3])[0])
    found = examine(
        [MemoryDataset("a", robot, episodes), MemoryDataset("b", robot, other)], ["a/train", "b/val"]
    )
    serious_ones = serious(found)
    assert set(serious_ones) == {"shared_episodes", "bgr_images"}
    assert serious_ones["shared_episodes"].numbers == {"pairs": [["2", "10"]], "with": "a/train"}
    assert serious_ones["bgr_images"].dataset == "b/val"
    assert "3 of the other 3 cameras examined do not" in serious_ones["bgr_images"].evidence


def test_rendered_images_may_be_blue() -> None:
    episodes = clean("widowx")
    for data in episodes:
        flat = np.zeros_like(data.images["primary"]) + np.uint8([60, 90, 140])
        flat[:, ::8] = np.arange(len(flat), dtype=np.uint8)[:, None, None, None]
        data.images = {"primary": flat}
    found = diagnose("widowx", episodes)
    assert serious(found) == {}
    assert [finding.code for finding in found.findings if "flat pixels" in finding.evidence] == ["bgr_images"]


def test_tool_frame_action_without_a_state() -> None:
    tree = Embodiment.load("widowx").model_dump(mode="json", exclude_none=True)
    tree["action"][0]["frame"] = "tool"
    episodes = clean("widowx")
    for data in episodes:
        data.state = None
    found = serious(examine([MemoryDataset("blind", Embodiment.model_validate(tree), episodes)]))
    assert set(found) == {"no_pose"}


def test_only_some_episodes_when_asked() -> None:
    found = examine(
        [MemoryDataset("some", Embodiment.load("widowx"), clean("widowx"))], max_episodes=3, images=0
    )
    assert (found.examined[0].episodes, found.examined[0].examined, found.examined[0].images) == (
        EPISODES,
        3,
        0,
    )


def test_nothing_readable_is_told_and_no_crash() -> None:
    class Broken(MemoryDataset):
        def __getitem__(self, index: int):
            raise ValueError(f"record {index} is gone")

    found = examine([Broken("broken", Embodiment.load("widowx"), clean("widowx"))])
    assert {f.code for f in found.findings} == {"unreadable"}
    assert (
        f"{EPISODES} of {EPISODES} episodes (100 %) cannot be read: record 0 is gone"
        in found.findings[0].evidence
    )


@pytest.mark.parametrize("name", Embodiment.available())
def test_noise_of_any_robot_gets_a_report(name: str) -> None:
    rng, robot = np.random.default_rng(0), Embodiment.load(name)
    episodes = [fake_data(robot, rng, length) for length in (1, 2, 7, 60, 60, 60)]
    episodes[3].action[:] = np.nan
    json.dumps(examine([MemoryDataset("noise", robot, episodes)], images=8).to_dict(), allow_nan=False)


def test_report_is_json_with_errors_first() -> None:
    episodes = clean("franka_panda")
    no_words("franka_panda", episodes)
    flip_gripper("franka_panda", episodes)
    tree = json.loads(json.dumps(diagnose("franka_panda", episodes).to_dict()))
    assert [finding["code"] for finding in tree["findings"]] == ["gripper_sign", "empty_instruction"]
    assert tree["counts"] == {"error": 1, "warning": 1, "note": 0}
    assert tree["datasets"][0]["examined"] == EPISODES


@pytest.fixture(scope="module")
def bridge(shared_dir: Path) -> Path:
    path = shared_dir / "data" / "bridge_dataset"
    if not path.is_dir():
        pytest.skip("needs the Bridge excerpt")
    return path


def test_real_bridge_episodes(bridge: Path, tmp_path: Path) -> None:
    """No false alarm; what it says is so: both splits of this excerpt hold the same 25 cut episodes."""
    splits = [
        open_dataset(bridge, split=split, check=False, cache_dir=tmp_path) for split in ("train", "val")
    ]
    assert {data.action.tobytes() for data in splits[0]} == {data.action.tobytes() for data in splits[1]}
    found = examine(splits, ["train", "val"])
    assert set(serious(found)) == {"shared_episodes", "truncated_episodes"}
    assert all(np.abs(data.action[0, :6]).max() < 1e-5 for data in splits[0])
    # The excerpt holds the first ten steps of each episode.
    assert {len(data) for data in splits[0]} == {10}
    codes = {"shared_episodes", "truncated_episodes", "dummy_first_action"}
    assert {finding.code for finding in found.findings} == codes


REAL_PLANTS = [
    (plant, code)
    for plant, code in PLANTS
    if plant in (
        flip_gripper, flip_both_grippers, gripper_in_bytes, dead_rotation, absolute, turned_about_z, mirrored,
        swapped_euler, too_small, bgr, frozen, nearly_twice,
    )
]  # fmt: skip


@pytest.mark.parametrize(("plant", "code"), REAL_PLANTS, ids=[plant.__name__ for plant, _ in REAL_PLANTS])
def test_defects_planted_into_real_episodes(
    bridge: Path, tmp_path: Path, plant: Callable[[str, Episodes], None], code: str
) -> None:
    """Real controllers lag, overshoot and saturate; the same defects still show."""
    episodes = [
        EpisodeData(
            action=real.action.copy(),
            state=None if real.state is None else real.state.copy(),
            images={"primary": np.stack([real.image(t) for t in range(len(real))])},
            instruction=real.instruction,
        )
        for real in open_dataset(bridge, cache_dir=tmp_path)
    ]
    plant("widowx", episodes)
    assert set(serious(diagnose("widowx", episodes))) == {code}


def test_instructions_that_change_on_the_way_are_noted() -> None:
    episodes = clean("franka_panda")
    for data in episodes[:3]:
        data.instruction_changes = [(4, "put it down")]
    found = diagnose("franka_panda", episodes)
    assert serious(found) == {}
    (note,) = [finding for finding in found.findings if finding.code == "changing_instruction"]
    assert note.severity == "note"
    assert note.numbers["episodes"] == ["0", "1", "2"]
    assert f"0 from {episodes[0].instruction!r} to 'put it down' at step 4" in note.evidence


def test_steps_without_words_are_found_behind_a_first_one_with() -> None:
    episodes = clean("franka_panda")
    episodes[3].instruction_changes = [(4, " ")]
    episodes[5].instruction = ""
    (warning,) = [f for f in diagnose("franka_panda", episodes).findings if f.code == "empty_instruction"]
    assert warning.severity == "warning"
    assert warning.numbers["episodes"] == ["3", "5"]
    assert "have no instruction, 1 of them at some steps" in warning.evidence
