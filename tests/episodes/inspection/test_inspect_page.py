"""The page of an episode: self-contained, with every frame and named slot, also of damaged episodes."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, MemoryDataset, fake_data
from vla_adapt.episodes.inspection.inspect_curves import WIDTH, Curve, chart
from vla_adapt.episodes.inspection.inspect_frames import thumbnails
from vla_adapt.episodes.inspection.inspect_page import curve_rows, write_page


def dataset(
    length: int = 8, size: int = 32, robot: str = "bimanual_panda"
) -> tuple[MemoryDataset, EpisodeData]:
    embodiment = Embodiment.load(robot)
    data = fake_data(embodiment, np.random.default_rng(0), length, size)
    return MemoryDataset("fakes", embodiment, [data]), data


def written(source: MemoryDataset, folder: Path, **options: float) -> tuple[str, dict]:
    """The page and the data its script reads."""
    out = folder / "deep" / "page.html"
    write_page(source, 0, out, **options)
    text = out.read_text()
    found = re.search(r'<script type="application/json" id=data>(.*?)</script>', text, re.S)
    assert found
    return text, json.loads(found[1])


def test_every_frame_and_every_slot(tmp_path: Path) -> None:
    source, data = dataset()
    data.instruction = source._episodes[0].instruction
    page, inside = written(source, tmp_path)
    assert inside["steps"] == 8
    assert inside["rate_hz"] == source.embodiment.rate_hz
    frames = inside["frames"]["primary"]
    assert len(frames) == 8
    for step in (0, 7):
        encoded = frames[step].removeprefix("data:image/jpeg;base64,")
        pixels = simplejpeg.decode_jpeg(base64.b64decode(encoded))
        # 80 % JPEG quality of noise: the picture, not the pixels, is the same.
        assert np.corrcoef(pixels.ravel(), data.images["primary"][step].ravel())[0, 1] > 0.7
    titles = re.findall(r"<figcaption><b>(.*?)</b>", page)
    assert len(titles) == len(inside["curves"]) == 14 + 14
    x, y = (f"right_ee_position_delta.{axis}" for axis in "xy")
    assert titles[:4] == [x, x.replace("_delta", ""), y, y.replace("_delta", "")]
    # Unified units: robosuite's 1 is 0.05 m.
    np.testing.assert_allclose(inside["curves"][0], data.action[:, 0] * 0.05, atol=1e-6)
    assert data.instruction in page


def test_nothing_from_elsewhere(tmp_path: Path) -> None:
    page, _ = written(dataset()[0], tmp_path)
    assert "http" not in page
    assert not re.search(r"<(link|iframe)|src=[\"'](?!data)|@import|url\(", page)


def test_words_cannot_break_out(tmp_path: Path) -> None:
    source, _ = dataset()
    evil = "</script><script>alert(1)</script><b>bold"
    nasty = EpisodeData(
        action=source._episodes[0].action, state=source._episodes[0].state, instruction=evil,
        images={"<i>": np.zeros((8, 9, 9, 3), np.uint8)}, metadata={"<u>": "</table>"},
    )  # fmt: skip
    page, inside = written(MemoryDataset("<h9>", source.embodiment, [nasty]), tmp_path)
    assert list(inside["frames"]) == ["<i>"]
    for word in ("<script>alert", "<b>bold", "<i>", "<u>", "</table></td>", "<h9>"):
        assert word not in page.replace("<table>", "")
    assert page.count("</script>") == 2


def test_frames_keep_to_the_budget() -> None:
    source, _ = dataset(length=60, size=160, robot="widowx")
    episode = source[0]
    for nothing in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"max_mb .*: wanted megabytes above 0"):
            thumbnails(episode, max_mb=nothing)
    full = thumbnails(episode, max_mb=8.0)
    assert (full.stride, full.width, len(full.uris["primary"])) == (1, 320, 60)
    small = thumbnails(episode, max_mb=0.1)
    assert small.width == 112
    assert small.stride > 1
    assert len(small.uris["primary"]) == len(range(0, 60, small.stride))
    assert sum(map(len, small.uris["primary"])) < 0.12e6
    assert small.sizes["primary"] == (160, 160)


def test_damaged_episodes_can_be_looked_at(tmp_path: Path) -> None:
    source, data = dataset(robot="widowx")
    data.action[3, 0] = np.nan
    data.images = {"primary": [simplejpeg.encode_jpeg(data.images["primary"][0])] * 7 + [b"no jpeg"]}
    page, inside = written(MemoryDataset("damaged", source.embodiment, [data]), tmp_path)
    assert inside["curves"][0][3] is None
    assert inside["curves"][0][2] is not None
    assert inside["frames"]["primary"][7] == ""
    assert "step 7 camera &#x27;primary&#x27;" in page


def test_gripper_shading_is_that_of_its_side() -> None:
    source, data = dataset()
    grippers = [i for i, part in enumerate(source.embodiment.action) if part.gripper is not None]
    assert len(grippers) == 2
    data.action[:, 6], data.action[:, 13] = -1, -1  # both open
    data.action[2:5, 13] = 1  # the left one closes
    rows = curve_rows(source.embodiment, data.episode("x"))
    closed = {curve.name: curve.closed for row in rows for curve in row if curve is not None}
    assert closed["left_ee_position_delta.x"].tolist() == [False] * 2 + [True] * 3 + [False] * 3
    assert closed["left_ee_position.z"].tolist() == closed["left_ee_position_delta.x"].tolist()
    assert not closed["right_ee_rotation_delta.y"].any()


def test_what_is_not_recorded_has_no_curve() -> None:
    source, data = dataset(robot="widowx")
    episode = dataclasses.replace(data.episode("x"), action_omits=("rotation",), state_omits=("gripper",))
    names = [[curve and curve.name for curve in row] for row in curve_rows(source.embodiment, episode)]
    assert [row[0] for row in names[3:]] == [None, None, None, "right_gripper"]
    assert [row[1] for row in names[5:]] == ["right_ee_rotation.z", None]


def test_chart_draws_bands_gaps_and_zero() -> None:
    values = np.array([-1.0, 0.5, np.nan, 1.0, 0.0])
    svg = chart(Curve("slot", "m", values, "action", np.array([False, True, True, False, False])), 3)
    assert svg.count("<path class=action") == 2  # a gap at the NaN
    assert 'd="M0.0 94.0L250.0 28.0"' in svg
    ((left, width),) = re.findall(r'<rect class=closed x="([\d.]+)" y=0 width="([\d.]+)"', svg)
    assert (float(left), float(width)) == (WIDTH * 0.5 / 4, WIDTH * 2 / 4)
    assert "class=zero" in svg
    assert "class=zero" not in chart(Curve("slot", "m", np.abs(values), "state"), 0)


def test_unknown_episode(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fakes: episode 5 asked, it has 1; count from 0"):
        write_page(dataset()[0], 5, tmp_path / "x.html")


def test_where_the_instruction_changes(tmp_path: Path) -> None:
    source, data = dataset()
    page, inside = written(source, tmp_path)
    assert inside["words"] == [[0, data.instruction]]
    assert "id=changes" not in page
    data.instruction_changes = [(3, "put it <down>"), (6, "")]
    page, inside = written(MemoryDataset("fakes", source.embodiment, [data]), tmp_path)
    assert inside["words"] == [[0, data.instruction], [3, "put it <down>"], [6, ""]]
    assert '<a href="#" data-step=3>step 3</a>: put it &lt;down&gt;' in page
    assert "step 6</a>: <span class=bad>no instruction</span>" in page
    assert "<datalist id=marks><option value=0><option value=3><option value=6></datalist>" in page
