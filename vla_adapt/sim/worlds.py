"""A simulated robot at its task: reset from a seed, observe, step with native actions, success or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vla_adapt.embodiment import Embodiment
from vla_adapt.sim.arms import Arm
from vla_adapt.sim.rendering import CameraView, SceneRenderer, hide_bodies, paint_geoms, thin_meshes
from vla_adapt.sim.simulator import load_robosuite
from vla_adapt.sim.tasks import SimTask

MESH_CELL_M = 0.01
SUBSTEPS = 25  # physics steps of 2 ms in a control step of 50 ms
CONTROL_EVERY = 2  # physics steps per update of joint torques (robosuite: 1); its Python is most of the cost
PLACEMENT_STREAM, PROMPT_STREAM = 0, 1  # independent random streams of one episode seed


class World:
    """One simulated robot. Everything random in an episode follows from the seed given to `reset`."""

    def __init__(
        self, task: SimTask, seed: int = 0, image_size: int = 112, cameras: Sequence[str] = ("primary",)
    ):
        """Build the simulation (seconds) and reset it to `seed`. Rendering is set up at the first image."""
        self.task, self.robot, self.max_steps = task, task.robot, task.max_steps
        self.embodiment = Embodiment.load(task.robot)
        self.image_size, self.cameras = image_size, tuple(cameras)
        self._views = self._camera_views()
        self._env = _make_environment(task)
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        self._renderer: SceneRenderer | None = None
        for robot in self._env.robots:
            robot.init_qpos = np.array(robot.init_qpos)
            robot.init_qpos[-1] += task.wrist_turn_rad
        self.arms = [Arm(self._env, robot) for robot in self._env.robots]
        self._object = self._env.pot if task.environment == "TwoArmLift" else self._env.cube
        self._object_body = self._model.body(self._object.root_body).id
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Start the episode of that seed: arm near its usual pose, gripper open, object and prompt drawn."""
        rng = np.random.default_rng([PLACEMENT_STREAM, seed])
        self._env.rng = rng
        self._env.reset()
        for arm in self.arms:
            arm.open_now()
        self._place_object(rng)
        self._place_base(rng)
        self._env.sim.forward()
        self.prompt = self.instruction(np.random.default_rng([PROMPT_STREAM, seed]))
        self.steps = 0

    def observe(self) -> dict[str, Any]:
        """What a policy sees: `images` {camera: uint8 [h, w, 3]}, `state` float32 [P] native, `prompt`."""
        images = {camera: self.render(camera) for camera in self.cameras}
        return {"images": images, "state": self.observe_state(), "prompt": self.prompt}

    def observe_state(self) -> Float[np.ndarray, " P"]:
        """Native proprio of the embodiment, without rendering."""
        return np.concatenate([arm.state() for arm in self.arms])

    def render(self, camera: str = "primary") -> UInt8[np.ndarray, "h w 3"]:
        """Image of one camera of this world."""
        if self._renderer is None:
            hide_bodies(self._model, self.task.hidden)
            paint_geoms(self._model, self.task.colors)
            thin_meshes(self._model, MESH_CELL_M)
            self._renderer = SceneRenderer(self._model, self._data, self.image_size)
        return self._renderer.render(self._view_now(camera))

    def step(self, native_action: Float[np.ndarray, " D"]) -> None:
        """Run one control step (50 ms) with an action of the embodiment.

        Raises:
            ValueError: wrong width, NaN or infinity.
        """
        self.embodiment.check_action(native_action)
        native_action = np.clip(np.asarray(native_action, np.float64), -1.0, 1.0)
        for index, arm in enumerate(self.arms):
            arm.command_gripper(native_action[7 * index + 6])
        action = self._robosuite_action(native_action)
        sim = self._env.sim
        for substep in range(SUBSTEPS):
            sim.step1()
            if substep % CONTROL_EVERY == 0:
                self._env._pre_action(action, policy_step=substep == 0)
            sim.step2()
        sim.forward()
        self.steps += 1

    def obeyed(self, native_action: Float[np.ndarray, " D"]) -> Float[np.ndarray, " D"]:
        """The action with 0 where the robot would not move: all of it is obeyed here."""
        return native_action

    def success(self) -> bool:
        """Whether the simulator judges the task done now (object lifted)."""
        return bool(self._env._check_success())

    def object_position(self, arm: int = 0) -> Float[np.ndarray, " 3"]:
        """Center of the object (m) in the frame of that arm's base. Privileged: no sensor gives it."""
        return self.arms[arm].into_base(self._data.xpos[self._object_body])

    def object_heading(self, arm: int = 0) -> float:
        """Yaw of the object (rad) in the frame of that arm's base. Privileged."""
        rotation = self._data.xmat[self._object_body].reshape(3, 3)
        return self.arms[arm].heading_into_base(
            np.arctan2(rotation[1, 0], rotation[0, 0]) - self.task.yaw_rad
        )

    def object_site(self, name: str, arm: int = 0) -> Float[np.ndarray, " 3"]:
        """A marked point of the object (the pot's "handle0"), in the frame of that arm's base. Privileged."""
        site = self._model.site(self._object.important_sites[name]).id
        return self.arms[arm].into_base(self._data.site_xpos[site])

    def object_pose(self) -> Float[np.ndarray, " 3"]:
        """Object's x, y (m) and yaw (rad) in the frame of the first arm's base. Privileged."""
        return np.array([*self.object_position()[:2], self.object_heading()], np.float32)

    def instruction(self, rng: np.random.Generator) -> str:
        """One of the task's paraphrases."""
        return self.task.instructions[rng.integers(len(self.task.instructions))]

    def close(self) -> None:
        """Free the simulation and its GL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        self._env.close()

    def _view_now(self, camera: str) -> CameraView | str:
        """Where that camera is now: in the world, or the model's own."""
        return self._views[camera]

    def _camera_views(self) -> dict[str, CameraView | str]:
        known: dict[str, CameraView | str] = {"primary": self.task.view}
        if self.task.wrist_camera:
            known["wrist"] = self.task.wrist_camera
        missing = [camera for camera in self.cameras if camera not in known]
        if missing:
            raise ValueError(
                f"simulated {self.robot} has no camera {missing[0]!r}; it has {', '.join(known)}"
            )
        return known

    def _place_object(self, rng: np.random.Generator) -> None:
        """Put the object on the table, uniformly within the task's range."""
        x, y = rng.uniform(-self.task.spread_m, self.task.spread_m, 2)
        yaw = self.task.yaw_rad + rng.uniform(-self.task.spread_rad, self.task.spread_rad)
        z = self._env.table_offset[2] - self._object.bottom_offset[2] + 0.001
        pose = [x, y, z, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        self._env.sim.data.set_joint_qpos(self._object.joints[0], np.array(pose))

    def _place_base(self, rng: np.random.Generator) -> None:
        """Fixed bases stay where they are."""

    def _robosuite_action(self, native_action: Float[np.ndarray, " D"]) -> Float[np.ndarray, " N"]:
        """The embodiment's action in robosuite's layout."""
        return native_action


def _make_environment(task: SimTask) -> Any:
    """The robosuite environment: no renderer or observables of its own, model built once, 20 Hz."""
    robosuite = load_robosuite()
    env = robosuite.make(
        task.environment,
        robots=list(task.robots),
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        hard_reset=False,
        ignore_done=True,
        control_freq=20,
        renderer="mujoco",
        seed=0,
        **task.options,
    )
    for name in list(env.observation_names):
        env.modify_observable(name, "enabled", False)
    return env
