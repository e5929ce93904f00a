"""The module that Accelerate wraps: a batch that mixes robots, each row through its own adapter and head."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from vla_adapt.adaptation.adapter_name import SHARED, adapter_of
from vla_adapt.adaptation.routed import route
from vla_adapt.policy.backbone import Question, Seen, join, look
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.heads import ActionHead, HeadOutput
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.summary_head import SummaryHead
from vla_adapt.training.auxiliary import AuxiliaryLoss


class Learner(nn.Module):
    """Model, one head per robot and the optional helper loss.

    The loss is the sum over samples of the sample's own masked mean, divided by the number of samples, so
    that it does not depend on how a global batch is split over processes or robots.
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

    def forward(self, batch: PolicyBatch) -> dict[str, Tensor]:
        """Total loss under "loss"; detached, by row of the batch, "loss_per_sample" [B], "prediction"
        [B, H, 32] and, with a helper loss, "auxiliary" [B].
        """
        answers = self.answers(batch)
        per_sample = torch.cat([answer.loss_per_sample for answer in answers])
        output = {
            "loss_per_sample": per_sample.detach(),
            "prediction": torch.cat([answer.prediction.detach() for answer in answers]),
        }
        loss = per_sample.sum()
        if self.auxiliary is not None:
            helper = self._helper_loss(batch, answers)
            output["auxiliary"] = helper.detach()
            loss = loss + self.auxiliary_weight * helper.sum()
        output["loss"] = loss / len(batch)
        return output

    def answers(self, batch: PolicyBatch) -> list[HeadOutput]:
        """What each robot's head says to its rows, in the order of the batch."""
        segments = batch.segments()
        parts = [batch.rows(rows) for _, rows in segments]
        heads = [self._head(robot) for robot, _ in segments]
        if batch.summary is not None:
            return [_from_summary(head, part) for head, part in zip(heads, parts, strict=True)]
        questions = [head.ask(self.model, part) for head, part in zip(heads, parts, strict=True)]
        seen = self._look(batch, questions)
        return [
            head.answer(self.model, part, question, own)
            for head, part, question, own in zip(heads, parts, questions, seen, strict=True)
        ]

    def _look(self, batch: PolicyBatch, questions: list[Question]) -> list[Seen]:
        """What each robot's head gets to see, of one pass over all rows."""
        question = join(questions, self.model.config.pad_token_id)
        with route(self.model, batch.robots) if self.adapted else nullcontext():
            seen = look(self.model, batch, question)
        return [seen.rows(rows) for _, rows in batch.segments()]

    def _helper_loss(self, batch: PolicyBatch, answers: list[HeadOutput]) -> Tensor:
        assert self.auxiliary is not None
        targets = batch.extra[self.auxiliary_key]
        rows = [segment for _, segment in batch.segments()]
        return torch.cat([self.auxiliary(a, targets[part]) for a, part in zip(answers, rows, strict=True)])

    def _head(self, robot: str) -> ActionHead:
        head = self.heads[robot]
        assert isinstance(head, ActionHead)
        return head

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by robot; those that robots share are under "shared"."""
        groups: dict[str, list[nn.Parameter]] = {robot: [] for robot in self.heads} | {SHARED: []}
        owners: dict[nn.Parameter, list[str]] = {}
        for robot, head in self.heads.items():
            for parameter in head.parameters():
                owners.setdefault(parameter, []).append(robot)
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                own = owners.get(parameter, [])  # robots may have a head together: it is listed once
                groups[adapter_of(name) or (own[0] if len(own) == 1 else SHARED)].append(parameter)
        return {robot: parameters for robot, parameters in groups.items() if parameters}


def _from_summary(head: ActionHead, batch: PolicyBatch) -> HeadOutput:
    assert isinstance(head, SummaryHead)
    assert batch.summary is not None
    return head.answer_summary(batch, batch.summary)
