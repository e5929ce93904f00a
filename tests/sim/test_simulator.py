import logging
import sys

import pytest

from vla_adapt.sim import simulator


def libraries(*installed):
    return lambda name: f"lib{name}.so" if name in installed else None


@pytest.mark.parametrize(
    ("installed", "asked", "chosen"),
    [
        (("OSMesa", "EGL"), "", "osmesa"),
        (("EGL",), "", "egl"),
        (("OSMesa", "EGL"), "egl", "egl"),
        (("EGL",), "glfw", "egl"),
    ],
)
def test_the_back_end_asked_for_or_the_installed_one_is_chosen(monkeypatch, installed, asked, chosen):
    monkeypatch.setattr("ctypes.util.find_library", libraries(*installed))
    monkeypatch.setenv("MUJOCO_GL", asked)
    assert simulator.choose_gl() == chosen


def test_no_gl_library_says_which_package_to_install(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", libraries())
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    with pytest.raises(ValueError, match="apt-get install libosmesa6"):
        simulator.choose_gl()


def test_missing_robosuite_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ctypes.util.find_library", libraries("OSMesa"))
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LP_NUM_THREADS"):
        monkeypatch.setenv(name, "osmesa" if name != "LP_NUM_THREADS" else "0")
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(ValueError, match=r"pip install 'vla_adapt\[sim\]'"):
        simulator.load_robosuite()


def test_only_errors_of_robosuite_are_shown():
    def level(number):
        return logging.LogRecord("robosuite_logs", number, "", 0, "", None, None)

    assert simulator._only_errors(level(logging.ERROR))
    assert not simulator._only_errors(level(logging.WARNING))
