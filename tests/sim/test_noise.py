import numpy as np

from vla_adapt.sim.noise import PUSH_STEPS, ActionNoise

MOVING = np.array([True] * 6 + [False])


def executed(seed, scale=1.0, steps=400, action=None):
    action = np.array([0.1] * 6 + [-1.0]) if action is None else action
    noise = ActionNoise(MOVING, np.random.default_rng(seed), scale)
    return np.array([noise(action) for _ in range(steps)])


def test_grippers_and_dimensions_at_rest_are_left_alone():
    actions = executed(0, action=np.array([0.5, 0.0, -0.5, 0.0, 0.2, 0.0, 1.0]))
    np.testing.assert_array_equal(actions[:, [1, 3, 5]], 0.0)
    np.testing.assert_array_equal(actions[:, 6], 1.0)
    assert (actions[:, [0, 2, 4]].std(axis=0) > 0.2).all()


def test_noise_stays_within_the_action_range_and_repeats_with_its_seed():
    assert np.abs(executed(1)).max() <= 1.0
    np.testing.assert_array_equal(executed(1), executed(1))
    assert not np.array_equal(executed(1), executed(2))


def test_scale_zero_is_no_noise():
    np.testing.assert_allclose(executed(3, scale=0.0), np.tile([0.1] * 6 + [-1.0], (400, 1)))


def test_pushes_make_successive_errors_alike(monkeypatch):
    errors = executed(4, steps=4000)[:, 0] - 0.1
    assert np.corrcoef(errors[:-1], errors[1:])[0, 1] > 0.1
    monkeypatch.setattr("vla_adapt.sim.noise.PUSH_CHANCE", 0.0)
    errors = executed(4, steps=4000)[:, 0] - 0.1
    assert abs(np.corrcoef(errors[:-1], errors[1:])[0, 1]) < 0.06
    assert PUSH_STEPS == (2, 5)


def test_slips_turn_grippers_round_for_some_steps_and_nothing_else():
    action = np.array([0.0] * 6 + [1.0])
    noise = ActionNoise(MOVING, np.random.default_rng(0), slip_chance=0.05)
    gripper = np.array([noise(action)[6] for _ in range(2000)])
    assert set(gripper) == {-1.0, 1.0}
    assert 0.05 < (gripper < 0).mean() < 0.4
    assert (executed(1)[:, 6] == -1.0).all()  # none without a chance
