from __future__ import annotations

from pathlib import Path

import pytest

from vla_adapt.serving.access import check_origin, check_token, find_robot, is_robot_name, read_token
from vla_adapt.serving.protocol import WireError

CARDS = {"ur5e": {}, "arm-7.v2": {}}


@pytest.mark.parametrize("name", ["ur5e", "arm-7.v2", "A_1"])
def test_robot_names(name: str) -> None:
    assert is_robot_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "__base__", "-x", "a b", "a\n", "x" * 65, "ü"]
)
def test_names_that_are_no_robot(name: str) -> None:
    assert not is_robot_name(name)
    with pytest.raises(WireError) as caught:
        find_robot(name, {**CARDS, name: {}})
    assert caught.value.code == "unknown_robot"


def test_unknown_robot_names_those_served() -> None:
    assert find_robot("ur5e", CARDS) == "ur5e"
    with pytest.raises(WireError, match=r"no robot 'ur5'; this server has: arm-7.v2, ur5e"):
        find_robot("ur5", CARDS)
    with pytest.raises(WireError, match="no robot named"):
        find_robot("", CARDS)
    with pytest.raises(WireError, match=r"\[1\]"):
        find_robot([1], CARDS)


def test_the_only_robot_needs_no_name() -> None:
    assert find_robot("", {"ur5e": {}}) == "ur5e"
    assert find_robot(None, {"ur5e": {}}) == "ur5e"


@pytest.mark.parametrize("header", ["Api-Key s3", "Bearer s3", "bearer  s3 ", "API-KEY s3"])
def test_token_accepted(header: str) -> None:
    check_token(header, "s3")


@pytest.mark.parametrize(
    "header", [None, "", "s3", "Basic s3", "Bearer", "Bearer s33", "Bearer s", "Bearer \xe9"]
)
def test_token_refused(header: str | None) -> None:
    with pytest.raises(WireError) as caught:
        check_token(header, "s3")
    assert caught.value.code == "unauthorized"
    check_token(header, None)


def test_web_pages_of_other_sites_are_refused() -> None:
    check_origin(None, "127.0.0.1:8000")
    check_origin("http://127.0.0.1:8000", "127.0.0.1:8000")
    check_origin("http://[::1]:8000", "[::1]:8000")
    check_origin("http://localhost:8000", "localhost:8000")
    for origin in ("http://evil.example", "null", "http://127.0.0.1:80", "http://["):
        with pytest.raises(WireError) as caught:
            check_origin(origin, "127.0.0.1:8000")
        assert caught.value.code == "forbidden_origin"


def test_a_name_that_a_web_page_pointed_here_is_refused_unless_there_is_a_token() -> None:
    """DNS rebinding: the page and the robot's server have the same name, whose owner chose its address."""
    with pytest.raises(WireError) as caught:
        check_origin("http://evil.example:8000", "evil.example:8000")
    assert caught.value.code == "forbidden_origin"
    check_origin("http://lab.example:8000", "lab.example:8000", guarded=True)


def test_read_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  s3cret\n")
    assert read_token(path) == "s3cret"
    for text in ("", "\n", "a\nb\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="wanted one line with the secret"):
            read_token(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_token(tmp_path / "missing")
