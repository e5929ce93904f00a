"""What explains the motion of each episode, computed for all at once, is what single fits give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_adapt.episodes.doctor.doctor_finding import Finding
from vla_adapt.episodes.doctor.doctor_fit import fit_scaled, fit_turned
from vla_adapt.episodes.doctor.doctor_odd_motion import _decides, _explained, _products


def test_all_episodes_at_once_or_one_by_one() -> None:
    """Of motion that is turned, mirrored, flat, reversed, or has nothing to do with the command."""
    rng = np.random.default_rng(0)
    turn = Rotation.from_rotvec([0.3, -1.0, 0.4])
    command = [rng.normal(size=(n, 3)) for n in (20, 31, 25, 40, 22)]
    motion = [
        turn.apply(command[0]) + 0.3 * rng.normal(size=(20, 3)),
        command[1] * [1, -1, 1],
        command[2] * [1, 1, 0.01],
        -command[3],
        rng.normal(size=(22, 3)),
    ]
    motion[2][:, :2] = motion[2][:, 1::-1]
    episode = np.repeat(np.arange(5), [len(one) for one in command])
    along, turned = _explained(*_products(np.concatenate(command), np.concatenate(motion), episode, 5))
    fits = [(fit_scaled(c, m), fit_turned(c, m)) for c, m in zip(command, motion, strict=True)]
    np.testing.assert_allclose(along, [plain.explained for plain, _ in fits], atol=1e-12)
    np.testing.assert_allclose(turned, [best.explained for _, best in fits], atol=1e-12)


def test_an_episode_without_usable_steps_has_nothing_explained() -> None:
    step = np.ones((3, 3))
    along, turned = _explained(*_products(step, step, np.array([2, 2, 2]), 4))
    assert along.tolist() == pytest.approx([0, 0, 1, 0])
    assert turned[[0, 1, 3]].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("explained", "other", "decides"), [(0.6, 0.95, True), (0.63, 0.78, False)])
def test_another_convention_must_explain_far_more(explained: float, other: float, decides: bool) -> None:
    numbers = {"explained": explained, "explained_other_frame": other, "explained_turned": 1.0}
    assert _decides(Finding("frame_mismatch", "error", "x", "", "", numbers)) is decides
