"""A server of our own: it comes up with its URL, it ends, and a bad one is an error."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from vla_adapt.evaluation.closed_loop import served_robots
from vla_adapt.evaluation.local_server import local_server


@pytest.mark.slow
def test_it_serves_and_ends(finished_run: Path, random_base: Path, tmp_path: Path):
    with local_server(random_base, finished_run / "bundles", tmp_path / "url") as url:
        assert set(served_robots(url)) == {"ur5e", "bimanual_panda"}
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/healthz", timeout=2)
    assert not (tmp_path / "url").exists()


@pytest.mark.slow
def test_one_that_does_not_come_up_is_an_error(random_base: Path, tmp_path: Path):
    with (
        pytest.raises(ValueError, match="did not come up"),
        local_server(random_base, tmp_path, tmp_path / "url"),
    ):
        pass
