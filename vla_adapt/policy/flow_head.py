"""Flow head: chunks flow out of noise along a learned velocity (flow matching, Lipman et al., 2210.02747).

As in pi0 (Black et al., 2410.24164) a small transformer, the action expert, sees a noisy chunk
x = t a + (1 - t) noise, and training times lean to the noisy side. It attends to the summary of what the
backbone saw, so that a chunk costs one pass of the backbone and a few cheap steps. Unlike pi0's it tells the
chunk a that it expects, which gives the velocity (a - x) / (1 - t) (Li & He, 2511.13720): measured to learn a
few windows by heart to a tenth of the error in as many steps.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import nn

from vla_adapt.policy.action_head import HeadConfig, HeadOutput, masked_mean
from vla_adapt.policy.attention import Attention
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.summary_head import SummaryHead
from vla_adapt.types import NUM_SLOTS

_STD = 0.02
_OUTPUT_STD = 0.01  # first expected chunks stay near zero, the middle of the normalized range
_LATEST = 0.9  # of training times (pi0's s, 0.999 there): 10 steps need no later one
_PERIODS = (4e-3, 4.0)  # of the sines that encode the time, as pi0's

Context = tuple[torch.Tensor, torch.Tensor | None]  # tokens [B, K, F], which of them count [B, K]


class FlowHead(SummaryHead):
    """Noise and loss are zero in masked slots. Predictions start from one fixed noise and repeat exactly.

    They are not clipped. Training draws noise and times from torch's global generator.
    """

    name: ClassVar[str] = "flow"
    noise: torch.Tensor

    def __init__(self, config: HeadConfig, width: int):
        super().__init__(config, width)
        self.expert = ActionExpert(config.horizon, self.inner_width, config.flow_layers, config.dropout)
        generator = torch.Generator().manual_seed(config.noise_seed)
        self.register_buffer("noise", torch.randn(config.horizon, NUM_SLOTS, generator=generator))

    def answer_summary(self, batch: PolicyBatch, summary: Float[torch.Tensor, "B N D"]) -> HeadOutput:
        """Mean squared error of the velocity over each sample's unmasked numbers.

        `prediction` is, in training, what the expert expects at the fixed noise (one Euler step of length 1
        from there), an estimate for the log; in eval mode it is what `predict` gives.
        """
        target, mask = self.targets(batch)
        context = self.reader(batch, summary)
        noise = torch.randn_like(target).masked_fill(~mask, 0.0)
        time = training_times(len(batch), target.device)
        noisy = torch.lerp(noise, target, time[:, None, None])
        error = self._velocity(noisy, batch, time, context) - (target - noise)
        with torch.no_grad():
            steps = 1 if self.training else self.config.flow_steps
            prediction = self._flow(batch, context, steps).masked_fill(~mask, 0.0)
        return self.output(masked_mean(error.square(), mask), prediction, summary)

    def predict_summary(
        self, batch: PolicyBatch, summary: Float[torch.Tensor, "B N D"]
    ) -> Float[torch.Tensor, "B H 32"]:
        """The chunk that the fixed noise flows to in `flow_steps` Euler steps."""
        return self._flow(batch, self.reader(batch, summary), self.config.flow_steps)

    def _flow(self, batch: PolicyBatch, context: Context, steps: int) -> Float[torch.Tensor, "B H 32"]:
        mask = batch.slot_mask[:, None]
        chunk = self.noise.expand(len(batch), -1, -1).masked_fill(~mask, 0.0)
        for step in range(steps):
            time = chunk.new_full((len(batch),), step / steps)
            chunk = chunk + self._velocity(chunk, batch, time, context).masked_fill(~mask, 0.0) / steps
        return chunk

    def _velocity(
        self,
        chunk: Float[torch.Tensor, "B H 32"],
        batch: PolicyBatch,
        time: Float[torch.Tensor, " B"],
        context: Context,
    ) -> Float[torch.Tensor, "B H 32"]:
        """Towards what the expert expects, to be there at time 1; of later times it is told the latest."""
        expected = self.expert(chunk, batch.slot_mask, time.clamp(max=_LATEST), context)
        return (expected - chunk) / (1.0 - time)[:, None, None]


def training_times(rows: int, device: torch.device) -> Float[torch.Tensor, " B"]:
    """Times in [0, 0.9], 0 being noise: pi0's s (1 - x) with x of Beta(1.5, 1), by its inverse CDF."""
    return _LATEST * (1.0 - torch.rand(rows, device=device) ** (2.0 / 3.0))


class ActionExpert(nn.Module):
    """Transformer over the steps of a chunk, attending to each other and to the context.

    The last token of the context (the state, else the text) is also added to every step.
    """

    def __init__(self, horizon: int, width: int, layers: int, dropout: float = 0.0):
        super().__init__()
        self.enter = nn.Linear(2 * NUM_SLOTS, width)
        self.mix1 = nn.Linear(2 * width, width)
        self.mix2 = nn.Linear(width, width)
        self.steps = nn.Parameter(torch.randn(horizon, width) * _STD)
        self.blocks = nn.ModuleList(ExpertBlock(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, NUM_SLOTS)
        nn.init.normal_(self.leave.weight, std=_OUTPUT_STD)
        nn.init.zeros_(self.leave.bias)

    def forward(
        self,
        chunk: Float[torch.Tensor, "B H 32"],
        slot_mask: Bool[torch.Tensor, "B 32"],
        time: Float[torch.Tensor, " B"],
        context: Context,
    ) -> Float[torch.Tensor, "B H 32"]:
        """The chunk that a noisy one comes from, float32; time and action are mixed by an MLP, as in pi0."""
        slots = slot_mask[:, None].to(chunk.dtype).expand_as(chunk)
        actions = self.enter(torch.cat([chunk, slots], dim=2).to(self.enter.weight.dtype))
        when = time_code(time, actions.shape[2]).to(actions.dtype)[:, None].expand_as(actions)
        mixed = nn.functional.silu(self.mix1(torch.cat([actions, when], dim=2)))
        tokens = self.mix2(mixed) + self.steps + context[0][:, -1:]
        for block in self.blocks:
            tokens = block(tokens, *context)
        return self.leave(self.norm(tokens)).float()


class ExpertBlock(nn.Module):
    """Attention among the steps, attention to the context, MLP; each after a norm, each added."""

    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.among, self.across = Attention(width), Attention(width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(
        self,
        tokens: Float[torch.Tensor, "B H F"],
        context: Float[torch.Tensor, "B K F"],
        counted: Bool[torch.Tensor, "B K"] | None,
    ) -> Float[torch.Tensor, "B H F"]:
        """The steps' tokens, one layer on."""
        own = self.norms[0](tokens)
        tokens = tokens + self.among(own, own)
        tokens = tokens + self.across(self.norms[1](tokens), context, counted)
        return tokens + self.fc2(self.drop(nn.functional.gelu(self.fc1(self.norms[2](tokens)))))


def time_code(time: Float[torch.Tensor, " B"], width: int) -> Float[torch.Tensor, "B F"]:
    """Sines and cosines of times in [0, 1], periods from 0.004 to 4."""
    half = (width + 1) // 2
    shortest, longest = map(math.log10, _PERIODS)
    periods = torch.logspace(shortest, longest, half, device=time.device)
    angles = 2 * math.pi * time[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
