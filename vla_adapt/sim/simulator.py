"""Bringing up robosuite and MuJoCo: quietly, with a GL that exists, or an error that says what to do."""

from __future__ import annotations

import ctypes.util
import logging
import os
from types import ModuleType

GL_BACKENDS = {"osmesa": "OSMesa", "egl": "EGL"}
"""Off-screen GL back ends (in order of preference; equally fast on a CPU) and their shared library."""


def choose_gl() -> str:
    """The off-screen GL back end to render with: `MUJOCO_GL` if osmesa or egl, else what is installed.

    Raises:
        ValueError: neither library is installed.
    """
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    order = [asked] if asked in GL_BACKENDS else list(GL_BACKENDS)
    for backend in order:
        if ctypes.util.find_library(GL_BACKENDS[backend]):
            return backend
    raise ValueError(
        f"no off-screen OpenGL library found (looked for {', '.join(GL_BACKENDS[b] for b in order)}); "
        "rendering the simulated robots needs one: apt-get install libosmesa6"
    )


def load_robosuite() -> ModuleType:
    """Import robosuite without its warnings.

    Raises:
        ValueError: robosuite or its MuJoCo is not installed.
    """
    backend = choose_gl()
    os.environ["MUJOCO_GL"] = backend
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa: threads cost more than they bring on small images
    logging.getLogger("robosuite_logs").addFilter(_only_errors)
    try:
        import robosuite
    except ImportError as error:
        raise ValueError(
            f"the simulated robots need robosuite and MuJoCo ({error}); pip install 'vla_adapt[sim]'"
        ) from error
    return robosuite


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
