"""Fast off-screen rendering of a MuJoCo scene on a CPU.

Software rendering of robot scenes is bound by their vertices (180,000 triangles for one Panda), not by
pixels. So visual meshes are thinned by vertex clustering (Rossignac & Borrel 1993) before upload, bodies that
only cost time are hidden, and shadows, reflections and multi-sampling are off: 1 ms instead of 14 ms (Panda,
112 pixels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from vla_adapt.sim.simulator import choose_gl

MIN_FACES_TO_THIN = 100
HIDDEN_GROUP = 5  # a geom group that is never drawn
VISUAL_GROUP = 1  # robosuite's group of visual geoms


@dataclass(frozen=True)
class CameraView:
    """A camera looking at a point, fixed in the world or in the frame of a robot's base.

    `lookat_m` [3] in that frame, `distance_m` to it, `azimuth_deg` (0 looks along +x, 90 along +y),
    `elevation_deg` (negative looks down), `fovy_deg` vertical field of view.
    """

    lookat_m: tuple[float, float, float]
    distance_m: float
    azimuth_deg: float
    elevation_deg: float
    fovy_deg: float = 40.0

    def carried(self, position_m: Float[np.ndarray, " 3"], heading_rad: float) -> CameraView:
        """This view of the frame of an upright base, in the world while the base stands there."""
        cos, sin = math.cos(heading_rad), math.sin(heading_rad)
        x, y, z = self.lookat_m
        ahead = position_m + np.array([cos * x - sin * y, sin * x + cos * y, z])
        return replace(
            self, lookat_m=tuple(ahead.tolist()), azimuth_deg=self.azimuth_deg + math.degrees(heading_rad)
        )


class SceneRenderer:
    """Renders square images of one MuJoCo model, in a GL context of its own; do not mix with others."""

    def __init__(self, model: Any, data: Any, image_size: int):
        """`model`, `data`: MjModel and MjData; `image_size` in pixels. Uploads the meshes as they are now."""
        mujoco: Any = import_module("mujoco")
        self._mujoco, self._model, self._data, self.image_size = mujoco, model, data, image_size
        model.vis.quality.offsamples = 0
        model.vis.global_.offwidth = model.vis.global_.offheight = image_size
        self._gl = _gl_context(image_size)
        self._gl.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX", "mjRND_HAZE"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[:] = 0
        self._options.geomgroup[VISUAL_GROUP] = 1
        self._options.sitegroup[:] = 0
        self._viewport = mujoco.MjrRect(0, 0, image_size, image_size)
        self._camera = mujoco.MjvCamera()

    def render(self, view: CameraView | str) -> UInt8[np.ndarray, "height width 3"]:
        """Image from a world camera, or from the model's camera of that name; row 0 is the top."""
        mujoco = self._mujoco
        self._aim(view)
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._options,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        image = np.empty((self.image_size, self.image_size, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._viewport, self._context)
        return np.ascontiguousarray(image[::-1])

    def _aim(self, view: CameraView | str) -> None:
        mujoco, camera = self._mujoco, self._camera
        if isinstance(view, str):
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = self._model.camera(view).id
            return
        camera.type = mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = view.lookat_m
        camera.distance, camera.azimuth, camera.elevation = (
            view.distance_m,
            view.azimuth_deg,
            view.elevation_deg,
        )
        self._model.vis.global_.fovy = view.fovy_deg

    def close(self) -> None:
        """Free the GL objects."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None


def _gl_context(size: int) -> Any:
    if choose_gl() == "osmesa":
        from mujoco.osmesa import GLContext
    else:
        from mujoco.egl import GLContext
    return GLContext(size, size)


def hide_bodies(model: Any, name_parts: tuple[str, ...]) -> int:
    """Never draw geoms that are named, or whose body is named, like one of `name_parts`. Returns how many."""
    hidden = 0
    for geom in range(model.ngeom):
        names = model.geom(geom).name + " " + model.body(model.geom_bodyid[geom]).name
        if any(part in names for part in name_parts):
            model.geom_group[geom] = HIDDEN_GROUP
            hidden += 1
    return hidden


def paint_geoms(model: Any, colors: dict[str, tuple[float, float, float]]) -> None:
    """Give the visual geoms whose names start so a plain color (RGB 0..1) instead of their texture."""
    for geom in range(model.ngeom):
        for prefix, color in colors.items():
            if model.geom(geom).name.startswith(prefix) and model.geom_group[geom] == VISUAL_GROUP:
                model.geom_matid[geom] = -1
                model.geom_rgba[geom] = [*color, 1.0]


def thin_meshes(model: Any, cell_m: float) -> tuple[int, int]:
    """Thin a compiled model's meshes in place, for rendering only; call before the renderer uploads them.

    Physics is unaffected: MuJoCo collides convex hulls, which are kept apart from the faces.

    Returns:
        triangles before and after.
    """
    mujoco: Any = import_module("mujoco")
    before = int(model.mesh_facenum.sum())
    drawn = model.geom_type == mujoco.mjtGeom.mjGEOM_MESH
    for mesh in np.unique(model.geom_dataid[drawn]):
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        if count < MIN_FACES_TO_THIN:
            continue
        vertex_start = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[vertex_start : vertex_start + model.mesh_vertnum[mesh]]
        rows, faces = cluster_faces(vertices, model.mesh_face[start : start + count], cell_m)
        model.mesh_face[start : start + len(rows)] = faces
        for indices in (model.mesh_facenormal, model.mesh_facetexcoord):
            indices[start : start + len(rows)] = indices[start : start + count][rows]
        model.mesh_facenum[mesh] = len(rows)
    return before, int(model.mesh_facenum.sum())


def cluster_faces(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], cell_m: float
) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, "k 3"]]:
    """Merge the vertices that share a cube of side `cell_m`; drop faces that collapse or repeat.

    Returns:
        the surviving rows of `faces` (ascending) and their new vertex indices.
    """
    cells = np.floor(vertices / cell_m).astype(np.int64)
    _, representative, cluster = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    merged = cluster.reshape(-1)[faces]
    alive = (merged[:, 0] != merged[:, 1]) & (merged[:, 1] != merged[:, 2]) & (merged[:, 0] != merged[:, 2])
    _, first = np.unique(np.sort(merged[alive], axis=1), axis=0, return_index=True)
    rows = np.flatnonzero(alive)[np.sort(first)]
    return rows, representative[merged[rows]]
