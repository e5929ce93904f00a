"""Licenses are told or read, never made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vla_adapt.adaptation.licenses import CardConfig, base_license, base_on_hub
from vla_adapt.resources import tiny_base_dir


def test_the_base_s_license_is_told_read_or_unknown(tmp_path: Path):
    assert base_license(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("# No front matter\n")
    assert base_license(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("---\na: [\n---\n")
    assert base_license(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Base\n")
    assert base_license(tmp_path) == "mit"
    assert base_license(tmp_path, CardConfig(base_license="apache-2.0")) == "apache-2.0"
    assert base_license(tiny_base_dir()) == "apache-2.0"


def test_the_base_s_name_is_told_or_that_of_its_download():
    download = Path("/cache/hub/models--openvla--openvla-7b/snapshots/abc")
    assert base_on_hub(download) == "openvla/openvla-7b"
    assert base_on_hub(download, CardConfig(base_model="me/mine")) == "me/mine"
    assert base_on_hub(tiny_base_dir()) is None
    assert base_on_hub(Path("/models--odd/x")) is None


@pytest.mark.parametrize("given", [{"license": "MIT License"}, {"base_model": "openvla-7b"}])
def test_what_the_hub_would_refuse_is_refused(given: dict[str, str]):
    with pytest.raises(ValidationError):
        CardConfig(**given)
