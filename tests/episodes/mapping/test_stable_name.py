"""Lasting names: what belongs to them, and what a description beside the data says."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_adapt.episodes.mapping.entry import SIDECAR
from vla_adapt.episodes.mapping.stable_name import recorded_name, stable_name


def test_a_named_dataset_keeps_its_episodes_names() -> None:
    assert stable_name("bridge_orig", "train/3", 40) == ("bridge_orig", "train/3")
    assert stable_name("liftset", "lift.hdf5/demo_3", 40) == ("liftset", "lift.hdf5/demo_3")


def test_without_a_name_length_counts_and_the_file_does_not() -> None:
    assert stable_name("", "train/3", 40) == ("", "train/3 40")
    names = {stable_name("", name, 40) for name in ("lift.hdf5/demo_3", "renamed.H5/demo_3")}
    assert names == {("", "demo_3 40")}
    assert stable_name("", "episode_3.hdf5", 40) == ("", "episode_3.hdf5 40"), "a file an episode: its name"


@pytest.mark.parametrize(
    ("text", "name"),
    [('{"name": "lift"}', "lift"), ('{"name": ""}', ""), ('{"name": null}', None), ("{}", None), ("{", None)],
)
def test_recorded_name(text: str, name: str | None, tmp_path: Path) -> None:
    assert recorded_name(tmp_path) is None
    (tmp_path / SIDECAR).write_text(text)
    assert recorded_name(tmp_path) == name
