"""Heads that read a small summary of what the backbone saw: it has no weights, so it can be kept on disk.

The summary is the final hidden states of each camera's patches, averaged on a grid, and that of the last
text token, which has seen image, condition and instruction: 17 vectors for one camera. The backbone reads
causally, as in its pre-training, so that a frozen one stays in what it knows.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import nn

from vla_adapt.policy.action_head import ActionHead, HeadConfig, HeadOutput, ProprioEncoder
from vla_adapt.policy.backbone import Question, Seen, look
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.openvla import OpenVLA

MAX_CAMERAS = 8
MAX_WIDTH = 512
_STD = 0.02


class SummaryHead(ActionHead):
    """`summarize` needs the backbone, `answer_summary` and `predict_summary` only what it gave."""

    cacheable: ClassVar[bool] = True
    narrower: ClassVar[int] = 1  # times, than the language model

    def __init__(self, config: HeadConfig, width: int):
        super().__init__(config, width)
        self.reader = SummaryReader(width, self.inner_width, config.grid, config.proprio)

    @property
    def inner_width(self) -> int:
        """Width the head works in."""
        return self.config.hidden or min(self.width // self.narrower, MAX_WIDTH)

    def ask(self, model: OpenVLA, batch: PolicyBatch) -> Question:
        """Image, condition and instruction as they are."""
        return Question(batch.input_ids, batch.attention_mask, self.prefix(batch))

    def answer(self, model: OpenVLA, batch: PolicyBatch, question: Any, seen: Seen) -> HeadOutput:
        """Loss of each sample from the summary of what was seen."""
        output = self.answer_summary(batch, self.summarize(model, batch, seen))
        output.patches = seen.patches
        return output

    @torch.no_grad()
    def predict(self, model: OpenVLA, batch: PolicyBatch) -> Float[torch.Tensor, "B H 32"]:
        """Chunk of each sample, from one pass of the backbone (none where the batch holds its summary)."""
        summary = batch.summary
        if summary is None:
            summary = self.summarize(model, batch, look(model, batch, self.ask(model, batch)))
        values = self.predict_summary(batch, summary)
        return values.masked_fill(~batch.slot_mask[:, None], 0.0)

    def summarize(self, model: OpenVLA, batch: PolicyBatch, seen: Seen) -> Float[torch.Tensor, "B N D"]:
        """Cells of each camera in reading order, then the last text token, float32; no camera: zeros."""
        rows, patches, width = seen.patches.shape
        side, grid = math.isqrt(model.num_patches), self.config.grid
        assert side * side == model.num_patches, "patches form a square"
        plane = seen.hidden[:, 1 : 1 + patches].float().reshape(-1, side, side, width).movedim(3, 1)
        pooled = nn.functional.adaptive_avg_pool2d(plane, grid)
        cells = pooled.flatten(2).transpose(1, 2).reshape(rows, -1, width)
        counted = counted_cells(batch, grid)
        if counted is not None:
            cells = cells.masked_fill(~counted[..., None], 0.0)
        condition = 0 if self.condition is None else len(self.condition.vectors)
        last = patches + condition + batch.attention_mask.sum(dim=1) - 1
        text = seen.hidden[torch.arange(rows, device=last.device), last].float()
        return torch.cat([cells, text[:, None]], dim=1)

    def answer_summary(self, batch: PolicyBatch, summary: Float[torch.Tensor, "B N D"]) -> HeadOutput:
        """Loss of each sample; `patches` of the output is empty, `action_hidden` the last text token."""
        raise NotImplementedError

    def predict_summary(
        self, batch: PolicyBatch, summary: Float[torch.Tensor, "B N D"]
    ) -> Float[torch.Tensor, "B H 32"]:
        """Chunk of each sample; masked slots hold anything."""
        raise NotImplementedError

    def output(
        self,
        loss: Float[torch.Tensor, " B"],
        prediction: Float[torch.Tensor, "B H 32"],
        summary: Float[torch.Tensor, "B N D"],
    ) -> HeadOutput:
        """What `answer_summary` gives."""
        return HeadOutput(loss, prediction, summary[:, :0], summary[:, -1:])


def counted_cells(batch: PolicyBatch, grid: int) -> Bool[torch.Tensor, "B N"] | None:
    """Which cells are of cameras that are there; None: all."""
    return None if batch.camera_mask is None else batch.camera_mask.repeat_interleave(grid * grid, dim=1)


class SummaryReader(nn.Module):
    """Summary and proprio to tokens of the head's width, each with a learned mark of its camera and place."""

    def __init__(self, width: int, inner: int, grid: int, proprio: bool):
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(width, elementwise_affine=False)  # `project` scales and shifts
        self.project = nn.Linear(width, inner)
        self.cells = nn.Parameter(torch.randn(grid * grid, inner) * _STD)
        self.cameras = nn.Parameter(torch.randn(MAX_CAMERAS, inner) * _STD)
        self.text = nn.Parameter(torch.randn(inner) * _STD)
        self.proprio = ProprioEncoder(inner, inner) if proprio else None

    def forward(
        self, batch: PolicyBatch, summary: Float[torch.Tensor, "B N D"]
    ) -> tuple[Float[torch.Tensor, "B K F"], Bool[torch.Tensor, "B K"] | None]:
        """The tokens (the text is number -1, or -2 before proprio), and which of them count (None: all).

        Raises:
            ValueError: a summary of another grid than the head's, or of more cameras than it has marks for.
        """
        cameras, rest = divmod(summary.shape[1] - 1, self.grid * self.grid)
        if rest or not 1 <= cameras <= MAX_CAMERAS:
            raise ValueError(
                f"a summary of {summary.shape[1]} vectors; wanted {self.grid}x{self.grid} cells for each of "
                f"1 to {MAX_CAMERAS} cameras and one for the text"
            )
        places = (self.cameras[:cameras, None] + self.cells).flatten(0, 1)
        marks = torch.cat([places, self.text[None]])
        tokens = self.project(self.norm(summary.to(self.project.weight.dtype))) + marks
        if self.proprio is not None:
            tokens = torch.cat([tokens, self.proprio(batch.proprio, batch.proprio_mask)], dim=1)
        counted = counted_cells(batch, self.grid)
        if counted is not None:
            counted = nn.functional.pad(counted, (0, tokens.shape[1] - counted.shape[1]), value=True)
        return tokens, counted
