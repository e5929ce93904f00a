"""The module that Accelerate wraps: one pass over a batch that mixes robots, each through its own adapter."""

from __future__ import annotations

from torch import Tensor, nn

from vla_adapt.adaptation.method import activate
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.heads import ActionHead
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.training.auxiliary import AuxiliaryLoss


class Learner(nn.Module):
    """Model, one head per robot and the optional helper loss.

    Rows are grouped by robot and every group passes through its robot's adapter. The loss is the sum over
    samples of the sample's own masked mean, divided by the number of samples, so that it does not depend on
    how a global batch is split over processes or robots.
    """

    def __init__(
        self,
        model: OpenVLA,
        heads: dict[str, ActionHead],
        adapted: bool,
        auxiliary: AuxiliaryLoss | None = None,
        auxiliary_weight: float = 0.0,
        auxiliary_key: str = "",
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(heads)
        self.adapted = adapted
        self.auxiliary = auxiliary
        self.auxiliary_weight = auxiliary_weight
        self.auxiliary_key = auxiliary_key

    def forward(self, batches: dict[str, PolicyBatch]) -> dict[str, Tensor]:
        """Total loss under "loss"; per robot, detached, "<robot>/loss" [B], "<robot>/prediction" [B, H, 32]
        and, with a helper loss, "<robot>/auxiliary" [B].
        """
        samples = sum(len(batch.robots) for batch in batches.values())
        output: dict[str, Tensor] = {}
        total: Tensor | None = None
        for robot, batch in batches.items():
            if self.adapted:
                activate(self.model, robot)
            head = self.heads[robot](self.model, batch)
            loss = head.loss_per_sample
            output[f"{robot}/loss"] = loss.detach()
            output[f"{robot}/prediction"] = head.prediction.detach()
            if self.auxiliary is not None:
                helper = self.auxiliary(head, batch.extra[self.auxiliary_key])
                output[f"{robot}/auxiliary"] = helper.detach()
                loss = loss + self.auxiliary_weight * helper
            part = loss.sum() / samples
            total = part if total is None else total + part
        assert total is not None, "an empty batch"
        output["loss"] = total
        return output

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by robot; those that robots share are under "shared"."""
        seen: set[int] = set()
        groups: dict[str, list[nn.Parameter]] = {robot: [] for robot in self.heads}
        groups["shared"] = []
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            owner = next((robot for robot in self.heads if f".{robot}." in name and ".lora_" in name), None)
            owner = owner or next((robot for robot in self.heads if name.startswith(f"heads.{robot}.")), None)
            groups[owner or "shared"].append(parameter)
        return {robot: parameters for robot, parameters in groups.items() if parameters}
