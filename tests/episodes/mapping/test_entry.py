"""What an entry may say, and how it refuses the rest."""

from __future__ import annotations

import json

import pytest

from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.suggest import load_yaml_model

GOOD = """
embodiment: franka
cameras: {primary: observation/image}
action:
  position: {field: action, columns: [0, 1, 2], scale: 0.1}
  rotation: {field: action, columns: [3, 4, 5], rotation: axis_angle, added_to: {field: observation/turn}}
  gripper: {field: action, columns: [6], open: 0, closed: 1, binarize: true}
state:
  position: {field: pose, columns: [0, 1, null]}
  orientation: omit
  gripper: {field: motion, columns: [0]}
  joints: omit
computed:
  motion: {function: planar_steps, of: [place, yaw]}
"""


def read(text: str) -> DatasetEntry:
    return load_yaml_model(DatasetEntry, text, "mine.yaml")


def test_components_and_what_they_read() -> None:
    entry = read(GOOD)
    assert isinstance(entry.action, dict)
    assert isinstance(entry.state, dict)
    assert entry.state["orientation"] == ()
    assert entry.action["gripper"][0].binarize
    assert entry.number_fields == ("action", "observation/turn", "pose", "place", "yaw")


def test_simple_form_is_as_it_was() -> None:
    entry = DatasetEntry(embodiment="widowx", cameras={}, action="action", state=["a", "b"])
    assert entry.action == ("action",)
    assert entry.state == ("a", "b")
    assert DatasetEntry(embodiment="widowx", cameras={}, state=None).state == ()
    assert DatasetEntry(embodiment="widowx", cameras={}).action == ("action",)


def test_several_sources_of_one_component() -> None:
    entry = DatasetEntry(
        embodiment="google_robot",
        cameras={},
        action={"base_velocity": [{"field": "a"}, {"field": "b", "scale": 3}]},
    )
    assert isinstance(entry.action, dict)
    assert [part.field for part in entry.action["base_velocity"]] == ["a", "b"]


@pytest.mark.parametrize("text", [GOOD, "embodiment: franka\ncameras: {}\naction: [a, b]\nstate: []\n"])
def test_an_entry_survives_json(text: str) -> None:
    entry = read(text)
    assert DatasetEntry.model_validate_json(entry.model_dump_json()) == entry
    assert DatasetEntry.model_validate(json.loads(entry.model_dump_json(exclude_unset=True))) == entry


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("cameras:", "camera:", "unknown key 'camera'; did you mean 'cameras'?"),
        ("columns: [0, 1, 2]", "colums: [0, 1, 2]", "unknown key 'colums'"),
        ("axis_angle", "axisangle", "unknown rotation 'axisangle'; one of axis_angle, quaternion_xyzw"),
        ("axis_angle", "euler_xyy", "unknown rotation 'euler_xyy'"),
        ("open: 0, closed: 1", "open: 0", "give both `open` and `closed`"),
        ("open: 0, closed: 1", "open: 1, closed: 1", "open and closed are both 1.0"),
        ("open: 0, closed: 1, ", "", "`binarize` and `relative` need `open` and `closed`"),
        ("binarize: true", "relative: 0.1", "relative commands need `open` and `closed` of opposite sign"),
        ("open: 0", "rotation: matrix, open: 0", "a gripper takes no rotation"),
        ("rotation: axis_angle,", "measured: {field: x},", "got both `measured` and `added_to`"),
        ("field: pose, ", "", "missing key 'field'"),
        ("state:", "image_quirks: {wrist: [bgr]}\nstate:", "image_quirks: no camera 'wrist'"),
        ("state:", "image_quirks: {primary: [brg]}\nstate:", "did you mean 'bgr'?"),
        (
            "state:",
            "stand_in_cameras: {wrist: top}\nstate:",
            "no camera 'top' in cameras to give for 'wrist'",
        ),
        ("state:", "stand_in_cameras: {primary: primary}\nstate:", "'primary' is in cameras and needs no"),
        ("state:", "constants: {gripper: [0]}\nstate:", "'gripper' is no component that `action` omits"),
        ("state:", "robot: My Robot\nstate:", "robot: got 'My Robot'"),
        ("state:", "rate_hz: 0\nstate:", "rate_hz: got 0"),
    ],
)
def test_wrong_entries_are_refused_in_one_helpful_line(old: str, new: str, wanted: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError) as caught:
        read(GOOD.replace(old, new, 1))
    assert str(caught.value).startswith("mine.yaml: ")
    assert "\n" not in str(caught.value)
    assert wanted in str(caught.value)


def test_stand_ins_are_taken_where_they_fit() -> None:
    text = "embodiment: franka\ncameras: {side: a, wrist: b}\nimage_quirks: {wrist: [bgr]}\n"
    entry = read(f"{text}action: [a]\nstate: []\n")
    assert entry.with_stand_ins({"side": "wrist", "primary": "top"}) is entry
    given = entry.with_stand_ins({"primary": "wrist", "side": "wrist", "left": "top"})
    assert given.stand_in_cameras == {"primary": "wrist"}
    assert given.with_stand_ins({"primary": "side"}) is given, "the first one stays"
    assert given.shown_cameras == {"side": "a", "wrist": "b", "primary": "b"}
    assert given.shown_quirks == {"side": (), "wrist": ("bgr",), "primary": ("bgr",)}
    assert DatasetEntry.model_validate_json(given.model_dump_json()) == given
