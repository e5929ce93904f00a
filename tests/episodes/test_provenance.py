"""Publisher and license of a dataset, as its entry says them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mapping.entry import read_sidecar
from vla_adapt.episodes.provenance import entry_of, provenance, stand_ins
from vla_adapt.episodes.source import MemoryDataset, fake_data
from vla_adapt.episodes.subset import EpisodeSubset


def test_of_a_dataset_and_its_parts(two_robot_data: dict[str, Path]):
    folder = two_robot_data["ur5e"]
    assert provenance(open_dataset(folder)) == ("", ""), "our writer does not know"
    sidecar = read_sidecar(folder)
    assert sidecar is not None
    told = sidecar.entry.model_copy(update={"license": "cc-by-4.0", "source": "https://example.org"})
    part = EpisodeSubset(EpisodeSubset(open_dataset(folder, entry=told), [0, 1]), [1])
    assert provenance(part) == ("cc-by-4.0", "https://example.org")


def test_of_episodes_in_memory():
    robot = Embodiment.load("ur5e")
    data = MemoryDataset("x", robot, [fake_data(robot, np.random.default_rng(0))])
    assert provenance(data) == ("", "")
    assert (entry_of(data), stand_ins(data)) == (None, {})


def test_which_camera_stands_in(two_robot_data: dict[str, Path]):
    plain = open_dataset(two_robot_data["ur5e"])
    assert stand_ins(plain) == {}
    camera = plain[0].cameras[0]
    given = open_dataset(two_robot_data["ur5e"], stand_in_cameras={"side": camera})
    assert stand_ins(EpisodeSubset(given, [0])) == {"side": camera}
    assert entry_of(EpisodeSubset(given, [0])) == given.entry
