"""Every catalogued dataset: a generated episode in its published layout against values worked out by hand.

The layouts are in `oxe_layouts.yaml`. What must come out (slots, gripper direction, rotations, masks,
cameras, instruction, depth) is written below with numpy and scipy alone, from the datasets' descriptions.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import yaml
from PIL import Image
from scipy.spatial.transform import Rotation

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.constants import check_constants, untrained_components
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.measuring.statistics import robot_statistics
from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec, NamedMixture, SourceOptions
from vla_adapt.episodes.mixing.open_mixture import open_mixture
from vla_adapt.episodes.oxe import CATALOGUE
from vla_adapt.episodes.rlds.example_proto import encode_example
from vla_adapt.episodes.rlds.tfrecord import frame
from vla_adapt.episodes.windows import unify_motion
from vla_adapt.recipe import PolicyConfig
from vla_adapt.training.robot_constants import robot_constants

Raw = dict[str, np.ndarray]
LAYOUTS: dict[str, dict[str, str]] = yaml.safe_load(
    (Path(__file__).parent / "oxe_layouts.yaml").read_text(encoding="utf-8")
)
STEPS = 6
TYPES = {"f4": "float32", "f8": "float64", "i4": "int32", "i8": "int64", "u1": "uint8", "b": "bool"}
CONV = "_converted_externally_to_rlds"

# --- what is stored ------------------------------------------------------------------------------------


def layout(name: str) -> dict[str, str]:
    fields = dict(LAYOUTS[name])
    shared = fields.pop("like", None)
    return LAYOUTS[shared] | fields if shared else fields


def color(field: str) -> tuple[int, int, int]:
    seed = zlib.crc32(field.encode())
    return 60 + seed % 40, 120 + seed // 64 % 40, 200 - seed // 4096 % 40


def generated(name: str) -> Raw:
    """Random numbers of every number field; unit quaternions and rotation matrices where those belong."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    raw: Raw = {}
    for field, code in layout(name).items():
        kind, *shape = code.split()
        size = (STEPS, *map(int, shape))
        if kind in ("f4", "f8", "z4"):
            raw[field] = rng.uniform(-0.9, 0.9, size).astype(np.float32).astype(np.float64)
        elif kind in ("i4", "i8", "u1", "b"):
            raw[field] = rng.integers(0, 2, size)
        elif kind.startswith("depth"):
            raw[field] = np.repeat(rng.integers(0, 250, (1, *size[1:])), STEPS, axis=0).astype(np.float64)
    for field, start in QUATERNIONS.get(name, ()):
        quaternions = raw[field].reshape(STEPS, -1)[:, start : start + 4]
        quaternions /= np.linalg.norm(quaternions, axis=1, keepdims=True)
        raw[field].reshape(STEPS, -1)[:, start : start + 4] = quaternions.astype(np.float32)
    for field, place in MATRICES.get(name, {}).items():
        turns = Rotation.random(STEPS, random_state=int(rng.integers(1000))).as_matrix().astype(np.float32)
        for row in range(3):
            for column in range(3):
                raw[field].reshape(STEPS, -1)[:, place(row, column)] = turns[:, row, column]
    for field, (columns, values) in SPECIAL.get(name, {}).items():
        raw[field].reshape(STEPS, -1)[:, columns] = np.reshape(values, (STEPS, -1))
    return raw


def write(folder: Path, name: str, raw: Raw) -> Path:
    """One RLDS episode, its JSON files written here and not by our writer."""
    path = folder / name / "1.0.0"
    path.mkdir(parents=True)
    record: dict[str, Any] = {"episode_metadata/file_path": [b"somewhere"]}
    tree: dict[str, Any] = {}
    for field, code in layout(name).items():
        kind, *shape = code.split()
        record[f"steps/{field}"], tree[field] = _stored(name, field, kind, shape, raw)
    if name == "kuka":  # the mixtures take of it what succeeded
        record["success"] = np.array([1])
    (path / f"{name}-train.tfrecord-00000-of-00001").write_bytes(frame(encode_example(record)))
    core = "tensorflow_datasets.core.features"
    text = {"pythonClassName": f"{core}.text_feature.Text", "text": {}}
    steps = {
        "sequence": {"feature": _dict(tree), "length": "-1"},
        "pythonClassName": f"{core}.dataset_feature.Dataset",
    }
    whole = {"steps": steps, "episode_metadata": _dict({"file_path": text})}
    if name == "kuka":
        tensor = {"shape": {}, "dtype": "bool", "encoding": "none"}
        whole["success"] = {"pythonClassName": f"{core}.tensor_feature.Tensor", "tensor": tensor}
    (path / "features.json").write_text(json.dumps(_dict(whole)))
    split = {"name": "train", "shardLengths": ["1"], "numBytes": "1"}
    info = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path


def _dict(features: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in features.items():
        group, _, rest = key.partition("/")
        # As in the releases: "observation/image" is nested, "present/xyz" a name with a slash in it.
        if rest and group in ("observation", "action", "action_dict", "ground_truth_states"):
            nested.setdefault(group, {})[rest] = value
        else:
            nested[key] = value
    done = {}
    for key, value in nested.items():
        is_group = (
            key in ("observation", "action", "action_dict", "ground_truth_states")
            and "pythonClassName" not in value
        )
        done[key] = {"featuresDict": {"features": value}} if is_group else value
    return {"featuresDict": {"features": done}}


def _stored(name: str, field: str, kind: str, shape: list[str], raw: Raw) -> tuple[Any, dict[str, Any]]:
    core = "tensorflow_datasets.core.features"
    if kind == "text":
        words = (
            task(name)
            if field in ("language_instruction", "observation/natural_language_instruction")
            else "?"
        )
        return [words.encode()] * STEPS, {"pythonClassName": f"{core}.text_feature.Text", "text": {}}
    if kind == "img":
        pixels = np.empty((*map(int, shape), 3), np.uint8)
        pixels[:] = color(field)
        data = simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB")
        return [data] * STEPS, _image([*shape, "3"], "uint8", "jpeg")
    if kind.startswith("depth"):
        dtype = {"depth8": "uint8", "depth16": "uint16", "depth32": "float32"}[kind]
        return [_png(raw[field][0].astype(dtype))] * STEPS, _image([*shape, "1"], dtype, "png")
    dimensions = {"dimensions": shape} if shape else {}
    tensor = {"shape": dimensions, "dtype": "float32" if kind == "z4" else TYPES[kind], "encoding": "none"}
    node = {"pythonClassName": f"{core}.tensor_feature.Tensor", "tensor": tensor}
    if kind == "z4":
        tensor["encoding"] = "zlib"
        return [zlib.compress(step.astype("<f4").tobytes()) for step in raw[field]], node
    return raw[field] if kind[0] == "f" else raw[field].astype(np.int64), node


def _image(shape: list[str], dtype: str, encoding: str) -> dict[str, Any]:
    image = {"shape": {"dimensions": shape}, "dtype": dtype, "encodingFormat": encoding}
    return {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image", "image": image}


def _png(values: np.ndarray) -> bytes:
    if values.dtype == np.float32:  # tfds stores the four bytes of a float as RGBA
        values = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 4)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def task(name: str) -> str:
    return f"do what {name.replace('_', ' ')} is about"


def row_major(row: int, column: int) -> int:
    return 4 * row + column


def column_major(start: int = 0) -> Callable[[int, int], int]:
    return lambda row, column: start + 4 * column + row


REACHED = "observation/clip_function_input/base_pose_tool_reached"
GRIPPER = "action/gripper_closedness_action"
ALL, SEVENTH = slice(None), slice(6, 7)
KEEP_CLOSE_OPEN = [0, 0.05, 1, 0, -1, 0]
QUATERNIONS: dict[str, list[tuple[str, int]]] = {
    "fractal20220817_data": [("observation/base_pose_tool_reached", 3)],
    "kuka": [(REACHED, 3)],
    f"stanford_kuka_multimodal_dataset{CONV}": [("observation/ee_orientation", 0)],
    "jaco_play": [("observation/end_effector_cartesian_pos", 3)],
    "berkeley_autolab_ur5": [("observation/robot_state", 9)],
    f"maniskill_dataset{CONV}": [("observation/tcp_pose", 3)],
    f"furniture_bench_dataset{CONV}": [("action", 3), ("observation/state", 3)],
    f"austin_sailor_dataset{CONV}": [("observation/state", 3)],
    f"kaist_nonprehensile{CONV}": [("observation/state", 17)],
    f"iamlab_cmu_pickup_insert{CONV}": [("action", 3)],
    "cmu_play_fusion": [("action", 3)],
    "berkeley_fanuc_manipulation": [("observation/end_effector_state", 3)],
    f"berkeley_mvp{CONV}": [("observation/pose", 3)],
    "fmb_dataset": [("observation/eef_pose", 3)],
    "fmb": [("observation/eef_pose", 3)],
    "dobbe": [("observation/quat", 0)],
}
MATRICES: dict[str, dict[str, Callable[[int, int], int]]] = {
    "viola": {"observation/ee_states": column_major()},
    f"austin_buds_dataset{CONV}": {"observation/state": column_major(8)},
    "utaustin_mutex": {"observation/state": column_major(8)},
    f"austin_sirius_dataset{CONV}": {"observation/state_ee": column_major()},
    "uiuc_d3field": {"observation/state": row_major},
}
CODES = np.zeros((STEPS, 512))
CODES[:, : len(task("language_table"))] = [ord(letter) for letter in task("language_table")]
# Numbers that must not be just random: field -> (columns, values).
SPECIAL: dict[str, dict[str, tuple[slice, Any]]] = {
    **{
        name: {GRIPPER: (ALL, KEEP_CLOSE_OPEN)}
        for name in (
            "fractal20220817_data",
            "kuka",
            "jaco_play",
            "nyu_door_opening_surprising_effectiveness",
        )
    },
    "berkeley_autolab_ur5": {GRIPPER: (ALL, [0, 0, -1, 0, 0, 1])},
    "language_table": {"observation/instruction": (ALL, CODES)},
    f"stanford_robocook{CONV}": {"action": (SEVENTH, [0, -0.0005, 0.01, 0, -0.02, 0])},
    "mujoco_manip": {"action": (SEVENTH, [0, 255, 51, 102, 0, 255])},
    "rh20t": {"observation/gripper_width": (ALL, [0, 80, 40, 20, 85, 8])},
    **{
        name: {"action": (SEVENTH, [0.5, 0.97, 0.5, 0.02, 0.4, 0.3])}
        for name in LAYOUTS
        if name.startswith("tdroid")
    },
    "bridge_orig": {"action": (SEVENTH, [0.5, 0.97, 0.5, 0.02, 0.4, 0.3])},
}

# --- what must come out --------------------------------------------------------------------------------

SLOTS = {
    "pos": 0,
    "rot": 3,
    "grip": 6,
    "joints": 7,
    "lpos": 14,
    "lrot": 17,
    "lgrip": 20,
    "ljoints": 21,
    "base": 28,
}
Q, AA, M = Rotation.from_quat, Rotation.from_rotvec, Rotation.from_matrix
DOWN = Rotation.from_euler("x", 180, degrees=True)


def E(angles: np.ndarray, axes: str = "xyz") -> Rotation:
    return Rotation.from_euler(axes, angles)


def clip(values: np.ndarray) -> np.ndarray:
    return np.clip(np.asarray(values, float), 0, 1)


def absolute(commands: np.ndarray, threshold: float = 0.1) -> np.ndarray:
    """Open X-Embodiment's rule as a plain loop: -1 opens, +1 closes; 1 is open."""
    signs = [1 if c < -threshold else -1 if c > threshold else 0 for c in np.asarray(commands).ravel()]
    state = next((-sign for sign in signs if sign), 1)
    out = []
    for sign in signs:
        state = sign or state
        out.append(state / 2 + 0.5)
    return np.array(out)


def scanned(opening: np.ndarray) -> np.ndarray:
    """Binarized backwards as a plain loop."""
    carry, out = float(opening[-1]), []
    for value in opening[::-1]:
        carry = 1.0 if value > 0.95 else 0.0 if value < 0.05 else carry
        out.append(carry)
    return np.array(out[::-1])


def rtx(r: Raw, **more: Any) -> dict[str, Any]:
    return {"pos": r["action/world_vector"], "rot": E(r["action/rotation_delta"])} | more


def seven(
    r: Raw, opening: Callable[[np.ndarray], np.ndarray] = clip, scale: float = 1.0, **more: Any
) -> dict[str, Any]:
    a = r["action"]
    return {"pos": a[:, :3] * scale, "rot": E(a[:, 3:6]), "grip": opening(a[:, 6])} | more


def pose(
    x: np.ndarray, turn: Callable[[np.ndarray], Rotation] = E, at: int = 3, width: int = 3
) -> dict[str, Any]:
    return {"s_pos": x[:, at - 3 : at], "s_rot": turn(x[:, at : at + width])}


def flange(x: np.ndarray) -> dict[str, Any]:
    matrices = x.reshape(-1, 4, 4).transpose(0, 2, 1)
    return {"s_pos": matrices[:, :3, 3], "s_rot": M(matrices[:, :3, :3])}


def closing(x: np.ndarray) -> np.ndarray:
    return 1 - clip(x)


def zyx(angles: np.ndarray) -> Rotation:
    """From (yaw, pitch, roll): R = Rz(yaw) Ry(pitch) Rx(roll)."""
    z, y, x = (Rotation.from_rotvec(np.outer(angles[:, i], np.eye(3)[2 - i])) for i in range(3))
    return z * y * x


def zxy(angles: np.ndarray) -> Rotation:
    """scipy's as_euler("zxy"): first about z, then x, then y, all fixed axes."""
    z, x, y = (
        Rotation.from_rotvec(np.outer(angles[:, i], np.eye(3)[axis])) for i, axis in enumerate((2, 0, 1))
    )
    return y * x * z


def about_z(angle: np.ndarray) -> Rotation:
    return Rotation.from_rotvec(np.outer(angle, [0, 0, 1]))


def flat(x: np.ndarray) -> np.ndarray:
    return np.column_stack([x[:, :2], np.zeros(len(x))])


def executed(positions: np.ndarray, turns: Rotation) -> dict[str, Any]:
    return {"pos": positions[1:] - positions[:-1], "rot": turns[1:] * turns[:-1].inv()}


def deoxys(r: Raw, **more: Any) -> dict[str, Any]:
    return seven(r, closing, 0.05) | {"rot": AA(r["action"][:, 3:6])} | more


def bridge(r: Raw) -> dict[str, Any]:
    return seven(r, **pose(r["observation/state"]), s_grip=clip(r["observation/state"][:, 6]))


def bridge_orig(r: Raw) -> dict[str, Any]:
    s, grip = r["observation/state"][1:], scanned(r["action"][1:, 6])[:-1]
    return executed(s[:, :3], E(s[:, 3:6])) | pose(s[:-1]) | {"grip": grip, "s_grip": clip(s[:-1, 6])}


def bridge_oxe(r: Raw) -> dict[str, Any]:
    s, grip = r["observation/state"][1:], r["action/open_gripper"][1:-1]
    return executed(s[:, :3], E(s[:, 3:6])) | pose(s[:-1]) | {"grip": grip, "s_grip": clip(s[:-1, 6])}


def bc_z(r: Raw) -> dict[str, Any]:
    here = r["observation/present/axis_angle"]
    turn = AA(here + r["action/future/axis_angle_residual"][:, :3]) * AA(here).inv()
    return {
        "pos": r["action/future/xyz_residual"][:, :3],
        "rot": turn,
        "grip": 1 - r["action/future/target_close"][:, 0],
        "s_pos": r["observation/present/xyz"],
        "s_rot": AA(here),
        "s_grip": closing(r["observation/present/sensed_close"]),
    }


def rh20t(r: Raw) -> dict[str, Any]:
    here, step = r["observation/tcp_base"], r["action/tcp_base"]
    turn = E(here[:, 3:] + step[:, 3:]) * E(here[:, 3:]).inv()
    return pose(here) | {
        "pos": step[:, :3], "rot": turn, "grip": r["action/gripper"],
        "s_grip": clip(r["observation/gripper_width"] / 80),
    }  # fmt: skip


def asu(r: Raw) -> dict[str, Any]:
    ee, s = r["ground_truth_states/EE"], r["observation/state"][:-1]
    return executed(ee[:, :3], E(ee[:, 3:])) | pose(ee[:-1]) | {
        "grip": clip(r["action"][:-1, 6]), "s_grip": clip(s[:, 6]), "s_joints": s[:, :6],
    }  # fmt: skip


def gnm(rate_hz: float) -> Callable[[Raw], dict[str, Any]]:
    def expected(r: Raw) -> dict[str, Any]:
        places, yaw = r["observation/position"], r["observation/yaw"][:, 0]
        rows = []
        for t in range(STEPS - 1):
            c, s = np.cos(yaw[t]), np.sin(yaw[t])
            ahead = np.array([[c, s], [-s, c]]) @ (places[t + 1] - places[t])
            rows.append([*ahead, yaw[t + 1] - yaw[t]])
        return {"base": np.array(rows) * rate_hz}

    return expected


def droid(r: Raw) -> dict[str, Any]:
    v, s = r["action_dict/cartesian_velocity"], r["observation/cartesian_position"]
    return pose(s) | {
        "pos": v[:, :3] * 0.075, "rot": E(v[:, 3:] * 0.15),
        "grip": closing(r["action_dict/gripper_position"]),
        "s_grip": closing(r["observation/gripper_position"]), "s_joints": r["observation/joint_position"],
    }  # fmt: skip


def tdroid(r: Raw) -> dict[str, Any]:
    a = r["action"]
    return pose(r["observation/cartesian_position"]) | {
        "pos": a[:, :3] * 0.075, "rot": E(a[:, 3:6] * 0.15), "grip": scanned(a[:, 6]),
        "s_grip": clip(r["observation/gripper_position"]), "s_joints": r["observation/joint_position"],
    }  # fmt: skip


def libero(r: Raw) -> dict[str, Any]:
    a, s = r["action"], r["observation/state"]
    return {
        "pos": a[:, :3] * 0.05, "rot": AA(a[:, 3:6] * 0.5), "grip": (1 - a[:, 6]) / 2,
        "s_pos": s[:, :3], "s_rot": AA(s[:, 3:6]), "s_grip": clip(s[:, 6] / 0.04),
    }  # fmt: skip


def aloha(r: Raw) -> dict[str, Any]:
    a, s = r["action"], r["observation/state"]
    sides = {"ljoints": a[:, :6], "lgrip": clip(a[:, 6]), "joints": a[:, 7:13], "grip": clip(a[:, 13])}
    state = {
        "s_ljoints": s[:, :6],
        "s_lgrip": clip(s[:, 6]),
        "s_joints": s[:, 7:13],
        "s_grip": clip(s[:, 13]),
    }
    return sides | state


def fmb(r: Raw) -> dict[str, Any]:
    return seven(
        r, **pose(r["observation/eef_pose"], Q, width=4), s_grip=clip(r["observation/state_gripper_pose"]),
        s_joints=r["observation/joint_pos"],
    )  # fmt: skip


def joint_steps(r: Raw) -> dict[str, Any]:
    a = r["action"]
    return {
        "joints": a[:, :7], "grip": closing(a[:, 7]), "s_joints": r["observation/joint_pos"],
        "s_grip": 1 - r["observation/gripper"],
    }  # fmt: skip


def roboset(r: Raw) -> dict[str, Any]:
    a, s = r["action"], r["observation/state"]
    return {"joints": a[:, :7], "grip": closing(a[:, 7]), "s_joints": s[:, :7], "s_grip": clip(s[:, 7])}


def s(r: Raw) -> np.ndarray:
    return r["observation/state"].reshape(STEPS, -1)


EXPECTED: dict[str, Callable[[Raw], dict[str, Any]]] = {
    "fractal20220817_data": lambda r: rtx(
        r, grip=absolute(r[GRIPPER]), **pose(r["observation/base_pose_tool_reached"], Q, width=4),
        s_grip=closing(r["observation/gripper_closed"]),
        base=3 * np.column_stack([r["action/base_displacement_vector"],
            r["action/base_displacement_vertical_rotation"]]),
    ),
    "bc_z": bc_z,
    "kuka": lambda r: rtx(
        r, grip=absolute(r[GRIPPER]), **pose(r[REACHED], Q, width=4),
        s_grip=closing(r["observation/gripper_closed"])
    ),
    f"stanford_kuka_multimodal_dataset{CONV}": lambda r: {
        "pos": r["action"][:, :3], "grip": clip(r["action"][:, 3]), "s_pos": r["observation/ee_position"],
        "s_rot": Q(r["observation/ee_orientation"]), "s_grip": clip(s(r)[:, 7]),
        "s_joints": r["observation/joint_pos"],
    },
    "bridge_dataset": bridge,
    "bridge_orig": bridge_orig,
    "bridge_oxe": bridge_oxe,
    "bridge": bridge_oxe,
    "taco_play": lambda r: pose(r["observation/robot_obs"]) | {
        "pos": r["action/rel_actions_world"][:, :3] * 0.02,
        "rot": E(r["action/rel_actions_world"][:, 3:6] * 0.05),
        "grip": clip(r["action/rel_actions_world"][:, 6]),
        "s_grip": clip(r["observation/robot_obs"][:, 6] / 0.08),
        "s_joints": r["observation/robot_obs"][:, 7:14],
    },
    "jaco_play": lambda r: pose(r["observation/end_effector_cartesian_pos"], Q, width=4) | {
        "pos": r["action/world_vector"], "grip": absolute(r[GRIPPER]),
        "s_joints": r["observation/joint_pos"][:, :6],
    },
    "berkeley_cable_routing": lambda r: rtx(r, s_joints=r["observation/robot_state"]),
    "roboturk": lambda r: rtx(r, grip=closing(r[GRIPPER][:, 0])),
    "nyu_door_opening_surprising_effectiveness": lambda r: rtx(r, grip=absolute(r[GRIPPER])),
    "viola": lambda r: flange(r["observation/ee_states"]) | {
        "pos": r["action/world_vector"] * 0.05, "rot": AA(r["action/rotation_delta"]),
        "grip": closing(r[GRIPPER]),
        "s_grip": clip(r["observation/gripper_states"] / 0.08), "s_joints": r["observation/joint_states"],
    },
    "berkeley_autolab_ur5": lambda r: rtx(
        r, grip=absolute(r[GRIPPER]), **pose(r["observation/robot_state"], Q, 9, 4),
        s_grip=closing(r["observation/robot_state"][:, 13]), s_joints=r["observation/robot_state"][:, :6],
    ),
    "toto": lambda r: rtx(r, grip=r["action/open_gripper"], s_joints=s(r)),
    "language_table": lambda r: {"pos": flat(r["action"]),
        "s_pos": flat(r["observation/effector_translation"])},
    "columbia_cairlab_pusht_real": lambda r: rtx(r, s_pos=flat(r["observation/robot_state"])),
    f"nyu_rot_dataset{CONV}": lambda r: seven(r, closing, **pose(s(r)), s_grip=closing(s(r)[:, 6])),
    f"stanford_hydra_dataset{CONV}": lambda r: seven(
        r, closing, s_pos=s(r)[:, :3], s_rot=E(s(r)[:, 7:10]), s_grip=clip(s(r)[:, 24] / 0.08),
        s_joints=s(r)[:, 10:17]
    ),
    f"austin_buds_dataset{CONV}": lambda r: deoxys(r, **flange(s(r)[:, 8:]), s_grip=clip(s(r)[:, 7] / 0.08),
        s_joints=s(r)[:, :7]),
    "utaustin_mutex": lambda r: deoxys(r, **flange(s(r)[:, 8:]), s_grip=clip(s(r)[:, 7] / 0.08),
        s_joints=s(r)[:, :7]),
    f"austin_sailor_dataset{CONV}": lambda r: deoxys(
        r, **pose(s(r), Q, width=4), s_grip=clip(r["observation/state_gripper"] / 0.08),
        s_joints=r["observation/state_joint"]
    ),
    f"austin_sirius_dataset{CONV}": lambda r: deoxys(
        r, **flange(r["observation/state_ee"]), s_grip=clip(r["observation/state_gripper"] / 0.08),
        s_joints=r["observation/state_joint"],
    ),
    f"nyu_franka_play_dataset{CONV}": lambda r: {
        "pos": r["action"][:, 7:10], "rot": E(r["action"][:, 10:13]), "grip": clip(r["action"][:, 13]),
        "s_joints": s(r)[:, :7], "s_pos": s(r)[:, 7:10], "s_rot": E(s(r)[:, 10:]),
    },
    f"maniskill_dataset{CONV}": lambda r: {
        "pos": r["action"][:, :3] * 0.1, "rot": AA(r["action"][:, 3:6] * 0.1),
        "grip": (r["action"][:, 6] + 1) / 2,
        "s_pos": r["observation/tcp_pose"][:, :3], "s_rot": Q(r["observation/tcp_pose"][:, [4, 5, 6, 3]]),
        "s_grip": clip(s(r)[:, 7] / 0.04), "s_joints": s(r)[:, :7],
    },
    f"furniture_bench_dataset{CONV}": lambda r: pose(s(r), Q, width=4) | {
        "pos": r["action"][:, :3], "rot": Q(r["action"][:, 3:7]), "grip": closing(r["action"][:, 7]),
        "s_grip": clip(s(r)[:, 34] / 0.08), "s_joints": s(r)[:, 13:20],
    },
    f"cmu_franka_exploration_dataset{CONV}": seven,
    f"kaist_nonprehensile{CONV}": lambda r: {
        "pos": r["action"][:, :3], "rot": AA(r["action"][:, 3:6]), "s_pos": s(r)[:, 14:17],
        "s_rot": Q(s(r)[:, 17:21]),
        "s_joints": s(r)[:, :14:2],
    },
    f"stanford_robocook{CONV}": lambda r: seven(r, lambda g: absolute(-g, 0.001), **pose(s(r)),
        s_grip=clip(s(r)[:, 6] / 0.08)),
    f"iamlab_cmu_pickup_insert{CONV}": lambda r: {
        "pos": r["action"][:, :3], "rot": Q(r["action"][:, 3:7]), "grip": clip(r["action"][:, 7]),
        "s_grip": clip(s(r)[:, 7]), "s_joints": s(r)[:, :7],
    },
    "cmu_playing_with_food": lambda r: {"pos": r["action"][:, :3], "grip": clip(r["action"][:, 7])},
    "cmu_play_fusion": lambda r: {
        "pos": r["action"][:, :3], "rot": Q(r["action"][:, 3:7]), "grip": clip(r["action"][:, 7]),
        "s_grip": clip(s(r)[:, 7] / 0.085), "s_joints": s(r)[:, :7],
    },
    "droid": droid,
    "droid_wipe": droid,
    "fmb_dataset": fmb,
    "fmb": fmb,
    **{name: tdroid for name in LAYOUTS if name.startswith("tdroid")},
    **{name: libero for name in LAYOUTS if name.startswith("libero")},
    f"berkeley_rpt{CONV}": joint_steps,
    f"berkeley_mvp{CONV}": lambda r: joint_steps(r) | pose(r["observation/pose"], Q, width=4),
    "roboset": roboset,
    "robo_set": roboset,
    f"asu_table_top{CONV}": asu,
    f"ucsd_kitchen_dataset{CONV}": lambda r: seven(r, s_joints=s(r)[:, :7]),
    f"ucsd_pick_and_place_dataset{CONV}": lambda r: pose(s(r)) | {
        "pos": r["action"][:, :3], "grip": (r["action"][:, 3] + 1) / 2
    },
    f"utokyo_xarm_pick_and_place{CONV}": lambda r: seven(
        r, **pose(r["observation/end_effector_pose"], zyx), s_joints=r["observation/joint_state"][:, :7]
    ) | {"rot": zyx(r["action"][:, 3:6])},
    f"utokyo_xarm_bimanual{CONV}": lambda r: {
        "lpos": r["action"][:, :3], "lrot": zyx(r["action"][:, 3:6]), "lgrip": clip(r["action"][:, 6]),
        "pos": r["action"][:, 7:10], "rot": zyx(r["action"][:, 10:13]), "grip": clip(r["action"][:, 13]),
        "s_lpos": r["observation/pose_l"][:, :3], "s_lrot": zyx(r["observation/pose_l"][:, 3:]),
        "s_pos": r["observation/pose_r"][:, :3], "s_rot": zyx(r["observation/pose_r"][:, 3:]),
    },
    f"stanford_mask_vit{CONV}": lambda r: {
        "pos": r["action"][:, :3], "rot": about_z(r["action"][:, 3]), "grip": (1 - r["action"][:, 4]) / 2,
        "s_pos": r["observation/end_effector_pose"][:, :3],
        "s_rot": about_z(r["observation/end_effector_pose"][:, 3]),
        "s_joints": s(r)[:, :7],
    },
    "imperialcollege_sawyer_wrist_cam": lambda r: seven(r, s_grip=clip(s(r))),
    f"utokyo_pr2_opening_fridge{CONV}": lambda r: seven(r, **pose(s(r))),
    f"utokyo_pr2_tabletop_manipulation{CONV}": lambda r: seven(r, **pose(s(r))),
    f"tokyo_u_lsmo{CONV}": lambda r: seven(r, **pose(s(r)), s_joints=s(r)[:, 6:12]),
    f"dlr_sara_pour{CONV}": lambda r: seven(r, **pose(s(r), zxy)) | {"rot": zxy(r["action"][:, 3:6])},
    f"dlr_sara_grid_clamp{CONV}": lambda r: seven(r, **pose(s(r), zxy)) | {"rot": zxy(r["action"][:, 3:6])},
    f"dlr_edan_shared_control{CONV}": lambda r: seven(
        r, closing, **pose(s(r), zxy), s_grip=closing(s(r)[:, 6])
    ) | {"rot": zxy(r["action"][:, 3:6])},
    "uiuc_d3field": lambda r: {
        "pos": r["action"], "s_pos": r["observation/state"][:, :3, 3],
        "s_rot": M(r["observation/state"][:, :3, :3])
    },
    "berkeley_fanuc_manipulation": lambda r: pose(r["observation/end_effector_state"], Q, width=4) | {
        "pos": r["action"][:, :3], "rot": E(r["action"][:, 3:]), "grip": closing(s(r)[:, 6]),
        "s_grip": closing(s(r)[:, 6]), "s_joints": s(r)[:, :6],
    },
    "robo_net": lambda r: {
        "pos": r["action"][:, :3], "rot": about_z(r["action"][:, 3]), "grip": clip(r["action"][:, 4]),
        "s_pos": s(r)[:, :3], "s_rot": about_z(s(r)[:, 3]),
    },
    "rh20t": rh20t,
    "mujoco_manip": lambda r: seven(r, lambda g: 1 - g / 255),
    "cmu_stretch": lambda r: seven(r, s_pos=s(r)[:, :3]),
    "dobbe": lambda r: seven(
        r, s_pos=r["observation/xyz"], s_rot=Q(r["observation/quat"]), s_grip=clip(r["observation/gripper"])
    ),
    "berkeley_gnm_recon": gnm(3),
    "berkeley_gnm_cory_hall": gnm(5),
    "berkeley_gnm_sac_son": gnm(10),
    "gnm_dataset": gnm(4),
    **{name: aloha for name in LAYOUTS if name.startswith("aloha")},
    **{
        name: lambda r: aloha(r) | {"base": r["action"][:, 14:16]}
        for name in ("aloha_mobile", "aloha_mobile_dataset")
    },
}  # fmt: skip

# Robot name -> orientation that the state's rotation slots are relative to; all others: pointing down.
REFERENCES = {
    "widowx": Rotation.identity(),
    "franka_libero": Rotation.from_euler("xyz", (180, 0, 90), degrees=True),
}
BASE_AXES = {"mobile_aloha": (28, 30)}
IMAGE, WITH_WRIST = {"primary": "image"}, {"primary": "image", "wrist": "wrist_image"}
HAND = {"wrist": "hand_image"}
DROID = {
    "primary": "exterior_image_1_left",
    "secondary": "exterior_image_2_left",
    "wrist": "wrist_image_left",
}
FMB = {"primary": "image_side_1", "secondary": "image_side_2", "wrist": "image_wrist_1"}
ROBOSET = {"primary": "image_left", "secondary": "image_right", "wrist": "image_wrist"}
ALOHA = {"primary": "cam_high", "left_wrist": "cam_left_wrist", "right_wrist": "cam_right_wrist"}
CAMERAS: dict[str, dict[str, str]] = {
    "bridge_dataset": {"primary": "image_0", "secondary": "image_1"},
    "bridge_orig": {"primary": "image_0", "secondary": "image_1"},
    "bridge_oxe": {"primary": "image", "secondary": "image_1"},
    "taco_play": {"primary": "rgb_static", "wrist": "rgb_gripper"},
    "jaco_play": {"primary": "image", "wrist": "image_wrist"},
    "berkeley_cable_routing": {"primary": "image", "secondary": "top_image", "wrist": "wrist45_image"},
    "roboturk": {"primary": "front_rgb"},
    "nyu_door_opening_surprising_effectiveness": {"wrist": "image"},
    "viola": {"primary": "agentview_rgb", "wrist": "eye_in_hand_rgb"},
    "berkeley_autolab_ur5": {"primary": "image", "wrist": "hand_image"},
    "language_table": {"primary": "rgb"},
    f"nyu_franka_play_dataset{CONV}": {"primary": "image", "secondary": "image_additional_view"},
    f"cmu_franka_exploration_dataset{CONV}": {"primary": "highres_image"},
    f"utokyo_xarm_pick_and_place{CONV}": {"primary": "image", "secondary": "image2", "wrist": "hand_image"},
    "robo_net": {"primary": "image", "secondary": "image1"},
    f"berkeley_mvp{CONV}": HAND,
    f"berkeley_rpt{CONV}": HAND,
    f"stanford_robocook{CONV}": {"primary": "image_1", "secondary": "image_2"},
    "uiuc_d3field": {"primary": "image_1", "secondary": "image_2"},
    "cmu_playing_with_food": {"primary": "image", "wrist": "finger_vision_1"},
    "droid": DROID,
    "droid_wipe": {"primary": "exterior_image_2_left", "wrist": "wrist_image_left"},
    "fmb_dataset": FMB,
    "fmb": FMB,
    "dobbe": {"primary": "wrist_image"},
    "roboset": ROBOSET,
    "robo_set": ROBOSET,
    "rh20t": {"primary": "image_front", "secondary": "image_side_right", "wrist": "image_wrist"},
    **{name: {"primary": "static_image"} for name in LAYOUTS if name.startswith("tdroid")},
    **{name: WITH_WRIST for name in LAYOUTS if name.startswith("libero")},
    **{
        name: {"primary": "image", "left_wrist": "left_wrist_image", "right_wrist": "right_wrist_image"}
        for name in LAYOUTS
        if name.startswith("aloha1")
    },
    "aloha_static_dataset": ALOHA | {"secondary": "cam_low"},
    "aloha_dagger_dataset": ALOHA | {"secondary": "cam_low"},
    "aloha_mobile_dataset": ALOHA,
    "aloha_mobile": ALOHA,
    **dict.fromkeys(
        (
            "columbia_cairlab_pusht_real",
            f"stanford_hydra_dataset{CONV}",
            f"austin_buds_dataset{CONV}",
            "utaustin_mutex",
            f"maniskill_dataset{CONV}",
            f"furniture_bench_dataset{CONV}",
            f"austin_sailor_dataset{CONV}",
            f"austin_sirius_dataset{CONV}",
            "imperialcollege_sawyer_wrist_cam",
            f"iamlab_cmu_pickup_insert{CONV}",
            "berkeley_fanuc_manipulation",
        ),
        WITH_WRIST,
    ),
}
SWAPPED = {
    f"stanford_hydra_dataset{CONV}": ("primary", "wrist"),
    "utaustin_mutex": ("primary", "wrist"),
    "berkeley_fanuc_manipulation": ("primary", "wrist"),
    "berkeley_autolab_ur5": ("wrist",),
}
# Camera -> (field, m per stored unit).
DEPTHS: dict[str, dict[str, tuple[str, float]]] = {
    "taco_play": {"primary": ("depth_static", 1), "wrist": ("depth_gripper", 1)},
    "berkeley_autolab_ur5": {"primary": ("image_with_depth", 1)},
    f"stanford_kuka_multimodal_dataset{CONV}": {"primary": ("depth_image", 1)},
    f"nyu_franka_play_dataset{CONV}": {
        "primary": ("depth", 1e-3),
        "secondary": ("depth_additional_view", 1e-3),
    },
    f"maniskill_dataset{CONV}": {"primary": ("depth", 2.0**-10), "wrist": ("wrist_depth", 2.0**-10)},
    f"stanford_robocook{CONV}": {"primary": ("depth_1", 1), "secondary": ("depth_2", 1)},
    "uiuc_d3field": {"primary": ("depth_1", 1e-3), "secondary": ("depth_2", 1e-3)},
    "fmb_dataset": {camera: (f"{field}_depth", 1) for camera, field in FMB.items()},
    "fmb": {camera: (f"{field}_depth", 1) for camera, field in FMB.items()},
    **{name: {"primary": ("static_depth_image", 1)} for name in LAYOUTS if name.startswith("tdroid")},
}


def check_vector(
    values: np.ndarray, mask: np.ndarray, wanted: dict[str, Any], robot: str, reference: Rotation | None
) -> None:
    """Every expected part in its slots; every other slot masked and 0."""
    rest = np.ones(32, bool)
    for part, numbers in wanted.items():
        start = SLOTS[part]
        if isinstance(numbers, Rotation):
            slots = np.arange(start, start + 3)
            turn = numbers if reference is None else reference.inv() * numbers
            got = Rotation.from_rotvec(values[:, slots])
            np.testing.assert_allclose(got.as_matrix(), turn.as_matrix(), atol=2e-6, err_msg=part)
        else:
            numbers = np.asarray(numbers, float).reshape(len(values), -1)
            slots = np.arange(start, start + numbers.shape[1])
            if part == "base":
                slots = np.array(BASE_AXES.get(robot, slots))
            np.testing.assert_allclose(values[:, slots], numbers, atol=2e-6, err_msg=part)
        assert mask[slots].all(), part
        rest[slots] = False
    assert not mask[rest].any()
    assert (values[:, rest] == 0).all()


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_generated_episode_of(name: str, tmp_path: Path) -> None:
    raw = generated(name)
    dataset = open_dataset(write(tmp_path / "data", name, raw), cache_dir=tmp_path / "cache")
    episode, robot = dataset[0], dataset.embodiment
    wanted = EXPECTED[name](raw)
    action = {part: numbers for part, numbers in wanted.items() if not part.startswith("s_")}
    state = {part.removeprefix("s_"): numbers for part, numbers in wanted.items() if part.startswith("s_")}
    proprio = ActionUnifier(robot, kind="proprio") if robot.proprio else None
    motion = unify_motion(episode, ActionUnifier(robot), proprio)
    assert len(episode) == dataset.lengths[0] == len(next(iter(action.values())))
    check_vector(motion.action, motion.action_mask, action, CATALOGUE[name].embodiment, None)
    if state:
        assert motion.proprio is not None
        reference = REFERENCES.get(robot.name, DOWN)
        check_vector(motion.proprio, motion.proprio_mask, state, robot.name, reference)
    else:
        assert episode.state is None
    assert episode.instruction == task(name)
    check_cameras(name, episode, raw)


def check_cameras(name: str, episode: Any, raw: Raw) -> None:
    cameras = CAMERAS.get(name, IMAGE)
    assert set(episode.cameras) == set(cameras)
    for camera, field in cameras.items():
        pixels = episode.image(len(episode) - 1, camera)
        code = layout(name)[f"observation/{field}"].split()
        assert pixels.shape == (int(code[1]), int(code[2]), 3)
        rgb = color(f"observation/{field}")
        rgb = rgb[::-1] if camera in SWAPPED.get(name, ()) else rgb
        np.testing.assert_allclose(pixels[3, 3], rgb, atol=6)
    depths = DEPTHS.get(name, {})
    assert set(episode.depth_cameras) == set(depths)
    for camera, (field, scale) in depths.items():
        stored = raw[f"observation/{field}"][1]
        depth = episode.depth(1, camera)
        np.testing.assert_allclose(depth, stored.reshape(depth.shape) * scale, rtol=1e-6)


def test_every_dataset_has_an_expectation() -> None:
    assert set(EXPECTED) == set(CATALOGUE) == set(LAYOUTS) - {"conv", "rtx"}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an episode of every dataset of the named mixtures."""
    folder = tmp_path_factory.mktemp("downloaded")
    for name in {
        name for mixture in NamedMixture.available() for name in NamedMixture.load(mixture).weights()
    }:
        write(folder, name, generated(name))
    return folder


@pytest.mark.parametrize("name", NamedMixture.available())
def test_a_named_mixture_opens_draws_and_trains_as_it_is(name: str, downloaded: Path) -> None:
    """With the camera a policy reads unless told otherwise, and without constants written by hand."""
    whole = SourceOptions(held_out_split="")
    opened = open_mixture(MixtureSpec(named=name, folder=str(downloaded), defaults=whole, balance="dataset"))
    mixture = opened.draw(seed=0, horizon=4, cameras=(PolicyConfig().camera,))
    assert [dataset.name for dataset in mixture.datasets] == list(NamedMixture.load(name).weights())
    first: dict[int, int] = {}
    for n in range(20 * len(mixture.datasets)):
        first.setdefault(mixture.sample(n).dataset, n)
    drawn = mixture.windows(first.values())
    assert {window["ids"]["dataset"] for window in drawn} == {dataset.name for dataset in mixture.datasets}
    for window in drawn:
        dataset = window["ids"]["dataset"]
        cameras = CAMERAS.get(dataset, IMAGE)
        camera = "primary" if "primary" in cameras else "wrist"
        rgb = color(f"observation/{cameras[camera]}")
        rgb = rgb[::-1] if camera in SWAPPED.get(dataset, ()) else rgb
        np.testing.assert_allclose(window["images"]["primary"][3, 3], rgb, atol=6)
        told = f"{dataset}: it has no camera 'primary'; its camera 'wrist' stands in"
        assert (told in opened.notes) == (camera == "wrist")
        assert window["instruction"] == task(dataset)
    for robot, statistics in robot_statistics(mixture.datasets).items():
        mine = [dataset for dataset in mixture.datasets if dataset.embodiment.name == robot]
        mask = statistics.action.mask
        constants = robot_constants(mine[0].embodiment, mask, mine, {})
        assert set(constants) == set(untrained_components(mine[0].embodiment, mask))


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_a_robot_of_one_dataset_alone_has_all_constants(name: str) -> None:
    entry = CATALOGUE[name]
    robot = Embodiment.load(entry.embodiment)
    omitted = (
        [part for part, parts in entry.action.items() if not parts] if isinstance(entry.action, dict) else []
    )
    assert set(entry.constants) == set(omitted)
    check_constants(robot, ActionUnifier(robot).mask_without(omitted), entry.constants)


def test_a_named_mixture_for_a_policy_that_looks_through_the_wrist(downloaded: Path) -> None:
    options = SourceOptions(held_out_split="", stand_in_cameras={"wrist": "primary"})
    opened = open_mixture(MixtureSpec(named="octo_rtx", folder=str(downloaded), defaults=options))
    mixture = opened.draw(seed=0, horizon=4, cameras=("wrist",))
    lacking = [
        name for name in NamedMixture.load("octo_rtx").weights() if "wrist" not in CAMERAS.get(name, IMAGE)
    ]
    assert [note for note in opened.notes if "no camera 'wrist'" in note] == [
        f"{name}: it has no camera 'wrist'; its camera 'primary' stands in" for name in lacking
    ]
    assert all(mixture.window(n)["images"].keys() == {"wrist"} for n in range(3))
