import numpy as np
import pytest

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.sim.experts import make_expert
from vla_adapt.sim.make_world import make_world
from vla_adapt.sim.tasks import TASKS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=sorted(TASKS))
def world(request):
    pytest.importorskip("robosuite")
    world = make_world(request.param, seed=0)
    yield world
    world.close()


def test_a_seed_decides_the_episode(world):
    seen = []
    for seed in (5, 6, 5):
        world.reset(seed)
        for _ in range(3):
            world.step(np.full(world.embodiment.action_dim, 0.3))
        seen.append((world.observe(), world.object_pose()))
    (first, pose), (other, other_pose), (again, again_pose) = seen
    np.testing.assert_array_equal(first["images"]["primary"], again["images"]["primary"])
    np.testing.assert_array_equal(first["state"], again["state"])
    np.testing.assert_array_equal(pose, again_pose)
    assert first["prompt"] == again["prompt"]
    assert not np.array_equal(first["images"]["primary"], other["images"]["primary"])
    assert np.abs(pose - other_pose).max() > 1e-3


def test_the_state_is_the_proprio_of_the_embodiment(world):
    world.reset(0)
    state = world.observe_state()
    assert state.dtype == np.float32
    assert state.shape == (world.embodiment.proprio_dim,)
    for arm in state.reshape(-1, 8):
        assert np.linalg.norm(arm[3:7]) == pytest.approx(1.0, abs=1e-5)
        assert arm[7] == pytest.approx(1.0, abs=0.02)  # the gripper starts open
        assert 0.2 < arm[0] < 0.7
        assert abs(arm[1]) < 0.2
    values, mask = ActionUnifier(world.embodiment, kind="proprio").to_unified(state)
    assert np.isfinite(values).all()
    assert mask.sum() == 7 * len(world.arms)
    assert np.abs(values[3:6]).max() < 2.0  # far from the singularity at pi


def test_images_show_a_scene_and_not_noise(world):
    world.reset(0)
    expert = make_expert(world)
    for _ in range(30 if world.robot == "mobile_panda" else 0):  # its camera sees the object when it is near
        world.step(expert())
    image = world.render().astype(int)
    assert image.shape == (112, 112, 3)
    assert image.std() > 20
    assert np.abs(np.diff(image, axis=1)).mean() < 8  # neighbors are alike; noise would give about 85
    main = int(np.argmax(world.task.colors["cube"]))  # red, or green in the UR5e's lab; the pot is red
    others = image[..., [channel for channel in range(3) if channel != main]]
    colored = (image[..., main, None] > 1.5 * others + 30).all(axis=-1)
    assert colored.sum() >= 25, "the object is too small to see"


def test_images_follow_the_arm(world):
    world.reset(0)
    before = world.render().astype(int)
    action = np.zeros(world.embodiment.action_dim)
    action[2] = -1.0
    for _ in range(8):
        world.step(action)
    assert (np.abs(world.render() - before).max(axis=2) > 30).sum() > 50


def test_the_gripper_obeys_and_actions_move_the_right_way(world):
    world.reset(0)
    start = world.observe_state()
    action = np.zeros(world.embodiment.action_dim)
    action[[0, 6]] = 1.0
    for _ in range(10):
        world.step(action)
    moved = world.observe_state() - start
    assert 0.05 < moved[0] < 0.5
    assert abs(moved[1]) < 0.03
    assert moved[7] < -0.7


def test_bad_actions_and_cameras_are_refused(world):
    with pytest.raises(ValueError):
        world.step(np.zeros(world.embodiment.action_dim + 1))
    with pytest.raises(ValueError):
        world.step(np.full(world.embodiment.action_dim, np.nan))
    with pytest.raises(ValueError, match=r"no camera 'ceiling'; it has primary"):
        make_world(world.robot, cameras=("ceiling",))
    assert not world.success()
