import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vla_adapt.sim.arms import GRIPPERS, quaternion_xyzw


@pytest.mark.parametrize("seed", range(10))
def test_quaternions_are_xyzw_with_a_positive_largest_component(seed):
    pytest.importorskip("mujoco")
    rotation = Rotation.random(random_state=seed)
    quaternion = quaternion_xyzw(rotation.as_matrix())
    assert quaternion[np.argmax(np.abs(quaternion))] > 0
    np.testing.assert_allclose(Rotation.from_quat(quaternion).as_matrix(), rotation.as_matrix(), atol=1e-9)


@pytest.mark.parametrize("name", sorted(GRIPPERS))
def test_the_open_pose_of_a_gripper_agrees_with_its_opening(name):
    kind = GRIPPERS[name]
    assert kind.open_joints[0] == pytest.approx(kind.open)
    assert kind.open != kind.closed
