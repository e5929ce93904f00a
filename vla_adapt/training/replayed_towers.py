"""The vision towers' kernels, recorded once as CUDA graphs and replayed in every training step.

Of OpenVLA-7B the towers do a twelfth of the arithmetic with more than half of the kernels: a GPU runs them
faster than Python can ask for them one by one. Their shapes do not depend on the text, so one recording
serves all steps; the language model, whose kernels are large, runs as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla_adapt.adaptation.routed import Route, RoutedLinear
from vla_adapt.policy.openvla import OpenVLA

Recorder = Callable[[nn.Module, tuple[Tensor, ...]], Any]


class _Projection(nn.Module):
    """Towers and projector of a model, as one module to record."""

    def __init__(self, model: OpenVLA) -> None:
        super().__init__()
        self.vision_backbone, self.projector = model.vision_backbone, model.projector

    def forward(self, pixel_values: Float[Tensor, "B 6 h w"]) -> Float[Tensor, "B P D"]:
        return self.projector(self.vision_backbone(pixel_values))


def _record(module: nn.Module, arguments: tuple[Tensor, ...]) -> Any:
    device = arguments[0].device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, dtype, cache_enabled=False):  # a cached copy would not be made anew
        quiet = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
        if quiet is not None:  # the recorder warms up on a stream of its own
            quiet(False)
        return torch.cuda.make_graphed_callables(module, arguments, allow_unused_input=True)


class ReplayedTowers:
    """Records the first pass of a model's towers and projector that can be, and replays it for all like it.

    These are passes on a GPU whose gradients are wanted, under autocast, with up-to-date copies of adapters
    (`adaptation.narrow_copies`): their addresses are what the recording reads. A batch of another size or of
    other robots runs as ever. Gradients of adapters come in buffers of the recording, which the next backward
    pass writes again: they must be used and forgotten before (no accumulation over passes).

    Args:
        model: whose towers.
        record: (module, its arguments) -> a module that replays its passes, forward and backward.
        device_type: only what lies on such a device is recorded.
    """

    def __init__(self, model: OpenVLA, record: Recorder = _record, device_type: str = "cuda") -> None:
        self._model, self._record, self._device_type = model, record, device_type
        self._plain = model.project
        self._layer = next((m for m in model.vision_backbone.modules() if isinstance(m, RoutedLinear)), None)
        self._key: tuple[Any, ...] | None = None
        self._recording: Any = None
        self._waits = False  # for a backward pass, until which the recording's tensors are in use

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, `project` of the model is this one's."""
        self._model.project = self.project  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._model.__dict__["project"]

    def project(self, pixel_values: Float[Tensor, "B 6 h w"]) -> Float[Tensor, "B P D"]:
        """As `OpenVLA.project`; what a replay gives holds until the next one."""
        key = self._key_of(pixel_values)
        if key is None or self._waits or self._key not in (None, key):
            return self._plain(pixel_values)
        if self._key is None:
            self._recording = self._record(_Projection(self._model).train(), (pixel_values.clone(),))
            self._key = key
        patches: Tensor = self._recording(pixel_values)
        patches.register_hook(self._done)
        self._waits = True
        return patches

    def _done(self, _: Tensor) -> None:
        self._waits = False

    def _key_of(self, pixel_values: Tensor) -> tuple[Any, ...] | None:
        """What must be the same for a recording to be right; None: such a pass is not recorded at all."""
        route: Route | None = self._model.rows.current
        device = pixel_values.device.type
        if self._layer is None or route is None or not route.narrow or device != self._device_type:
            return None
        if not (self._model.training and torch.is_grad_enabled() and torch.is_autocast_enabled(device)):
            return None
        copies = tuple(matrix.data_ptr() for copy in self._layer.narrow.values() for matrix in copy)
        return pixel_values.shape, pixel_values.dtype, route.samples, route.segments, route.reach_all, copies
