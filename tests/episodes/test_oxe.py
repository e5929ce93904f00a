"""The catalogue: complete, lazily read, and open to files of one's own. Values: `test_oxe_datasets.py`."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mapping.transforms import find_transforms
from vla_adapt.episodes.oxe import CATALOGUE, Catalogue, find_entry


@pytest.mark.parametrize("name", CATALOGUE)
def test_entry_names_a_robot_its_cameras_and_known_transforms(name: str) -> None:
    entry = CATALOGUE[name]
    robot = Embodiment.load(entry.embodiment)
    assert all(camera in entry.cameras for camera, spec in robot.cameras.items() if spec.required)
    find_transforms(entry.transforms)


def test_every_dataset_of_openvla_and_octo_is_there(shared_dir: Path) -> None:
    table = (shared_dir / "OXE_CATALOGUE.md").read_text().split("## Configs")[1].split("\n## ")[0]
    rows = [line.split("|")[1].split("(")[0].strip() for line in table.splitlines() if line.startswith("| ")]
    names = [name for name in rows if name and name != "dataset" and not set(name) <= {"-"}]
    assert len(names) > 75
    assert set(names) - set(CATALOGUE) == set()


def test_rates_are_those_of_the_table(shared_dir: Path) -> None:
    table = (shared_dir / "OXE_CATALOGUE.md").read_text().split("## Configs")[1].split("\n## ")[0]
    checked = 0
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 8 and re.fullmatch(r"[1-9][\d.]*", cells[8]) and cells[1] in CATALOGUE:
            assert CATALOGUE[cells[1]].rate_hz == float(cells[8]), cells[1]
            checked += 1
    assert checked > 45


def test_rates_that_nobody_states_are_said_to_be_assumed() -> None:
    assumed = {name for name, entry in CATALOGUE.items() if entry.rate_hz is None}
    assert assumed == {name for name, entry in CATALOGUE.items() if "rate is not documented" in entry.notes}
    assert len(assumed) == 4


def test_statistics_of_their_own_are_shared_with_no_other_data() -> None:
    places = {(entry.robot or entry.embodiment, entry.source) for entry in CATALOGUE.values()}
    robots = Counter(robot for robot, _ in places)
    own = [entry for entry in CATALOGUE.values() if "statistics of their own" in entry.notes]
    assert len(own) > 10
    assert [entry.source for entry in own if robots[entry.robot or entry.embodiment] > 1] == []


def test_robots_of_one_name_are_one_embodiment() -> None:
    """Statistics are kept by robot name, so a name must not stand for two embodiments."""
    robots: dict[str, str] = {}
    for entry in CATALOGUE.values():
        name = entry.robot or entry.embodiment
        assert robots.setdefault(name, entry.embodiment) == entry.embodiment
        assert entry.robot is None or entry.robot not in Embodiment.available()


def test_nothing_is_read_on_import() -> None:
    code = (
        "from vla_adapt.episodes.oxe import CATALOGUE; assert not CATALOGUE._entries; "
        "CATALOGUE['toto']; assert list(CATALOGUE._entries) == ['toto']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names() -> None:
    assert "bridge_dataste" not in CATALOGUE
    with pytest.raises(KeyError):
        CATALOGUE["bridge_dataste"]
    with pytest.raises(
        ValueError, match=r"no catalogue entry 'bridge_dataste'; did you mean 'bridge_dataset'"
    ):
        find_entry("bridge_dataste")


def test_an_entry_of_ones_own_may_be_like_another(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("like: droid\ncameras: {primary: observation/front}\nrobot: my_franka\n")
    entry = find_entry(path)
    assert entry == find_entry(str(path))
    assert entry.cameras == {"primary": "observation/front"}
    assert entry.action == CATALOGUE["droid"].action
    assert entry.robot == "my_franka"
    assert entry.rate_hz == 15


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("like: droyd\n", r"mine.yaml: like: no catalogue entry 'droyd'; did you mean 'droid'\?"),
        ("like: [droid]\n", r"mine.yaml: like: no catalogue entry '\['droid'\]'"),
        ("like: droid\ncamera: {}\n", r"mine.yaml: unknown key 'camera'; did you mean 'cameras'\?"),
        ("embodiment: [\n", r"mine.yaml: line 2 not valid YAML"),
        ("cameras: {}\n", r"mine.yaml: missing key 'embodiment'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=wanted) as caught:
        find_entry(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no entry file .*gone\.yaml; give a YAML file or a name"):
        find_entry(tmp_path / "gone.yaml")


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("embodiment: widowx\ncameras: {}\n")
    (tmp_path / "other.yaml").write_text("like: mine\nrate_hz: 7\n")
    catalogue = Catalogue(tmp_path)
    assert list(catalogue) == ["mine", "other"]
    assert catalogue["other"].rate_hz == 7
    assert catalogue["other"].embodiment == "widowx"


def test_bridge_is_found_by_its_name(shared_dir: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared_dir / "data" / "bridge_dataset", cache_dir=tmp_path)
    assert dataset.entry is CATALOGUE["bridge_dataset"]
    assert dataset.embodiment.name == "widowx"
    assert dataset[0].image(0, "primary").shape == (64, 64, 3)
