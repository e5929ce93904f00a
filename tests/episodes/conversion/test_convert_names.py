"""Names there and back, and every catalogue entry rewritten."""

from __future__ import annotations

import pytest

from vla_adapt.episodes.conversion.convert_names import field_names, instruction_name, renamed_entry
from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.episodes.oxe import CATALOGUE
from vla_adapt.episodes.storage.feature_spec import Kind, LeafSpec

NUMBER = LeafSpec(Kind.NUMBER, (3,), "float32")
IMAGE = LeafSpec(Kind.IMAGE, (4, 4, 3), "uint8")


def test_rlds_to_lerobot_and_back() -> None:
    fields = {
        "action/world_vector": NUMBER,
        "observation/state": NUMBER,
        "observation/front": IMAGE,
        "other_camera": IMAGE,
        "reward": NUMBER,
        "timestamp": NUMBER,
        "task": LeafSpec(Kind.TEXT),
    }
    names = field_names(fields, "lerobot")
    assert list(names.values()) == [
        "action.world_vector",
        "observation.state",
        "observation.images.front",
        "observation.images.other_camera",
        "reward",
        "recorded.timestamp",
        "recorded.task",
    ]
    back = field_names({names[field]: leaf for field, leaf in fields.items()}, "rlds")
    assert {field: back[name] for field, name in names.items()} == {
        **{field: field for field in fields},
        "other_camera": "observation/other_camera",
    }


def test_a_field_and_a_folder_of_the_same_name() -> None:
    names = field_names({"action": NUMBER, "action.joint.left": NUMBER, "next.done": NUMBER}, "rlds")
    assert list(names.values()) == ["action", "action.joint.left", "next/done"]
    taken = field_names({"observation.top": NUMBER, "observation.images.top": IMAGE}, "rlds")
    assert list(taken.values()) == ["observation/top", "observation/images/top"]


def test_the_instruction_takes_a_free_name() -> None:
    assert instruction_name({"language_instruction": "language_instruction"}, "rlds") == "task"
    assert instruction_name({"note": "note"}, "rlds") == "language_instruction"
    assert instruction_name({}, "lerobot") == "task"


def test_clashing_names_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"fields 'a/b' and 'a\.b' would both be 'a\.b' in lerobot; rename one"
    ):
        field_names({"a/b": NUMBER, "a.b": NUMBER}, "lerobot")


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_catalogue_entry_is_renamed(name: str) -> None:
    entry = CATALOGUE[name]
    pictures = set(entry.cameras.values())
    fields = {f: IMAGE if f in pictures else NUMBER for f in entry.stored_fields}
    fields = {
        field: leaf for field, leaf in fields.items() if field not in {d.field for d in entry.depth.values()}
    }
    names = field_names(fields, "lerobot")
    there = renamed_entry(entry, names, "task")
    assert not any("/" in field for field in there.stored_fields)
    assert there.instruction == "task"
    assert len(there.stored_fields) == len(fields)
    back = renamed_entry(there, {new: old for old, new in names.items()}, "language_instruction")
    wanted = {"instruction": "language_instruction", "instruction_text": None, "depth": {}}
    assert back == entry.model_copy(update=wanted)


def test_what_is_left_behind_leaves_the_entry() -> None:
    entry = DatasetEntry.model_validate(
        {
            "embodiment": "franka_panda",
            "cameras": {"primary": "observation/front"},
            "depth": {"primary": {"field": "observation/depth"}},
            "extra": {"pose": "observation/pose", "gone": "observation/ragged"},
        }
    )
    fields = {
        "action": NUMBER,
        "observation/state": NUMBER,
        "observation/front": IMAGE,
        "observation/pose": NUMBER,
    }
    renamed = renamed_entry(entry, field_names(fields, "lerobot"), "task")
    assert renamed.depth == {}
    assert renamed.extra == {"pose": "observation.pose"}
