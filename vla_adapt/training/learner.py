"""The module that Accelerate wraps: a batch that mixes robots, each row through its own adapter and head."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from vla_adapt.adaptation.adapter_name import SHARED, adapter_of
from vla_adapt.adaptation.narrow_copies import NarrowCopies
from vla_adapt.adaptation.routed import route
from vla_adapt.invariance.instruction_groups import instruction_ids
from vla_adapt.invariance.objective import InvarianceObjective
from vla_adapt.invariance.tap import tapped
from vla_adapt.policy.backbone import Question, Seen, join, look
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.heads import ActionHead, HeadOutput
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.summary_head import SummaryHead
from vla_adapt.training.auxiliary import AuxiliaryLoss
from vla_adapt.training.loss_balance import BALANCE, LossBalance

INVARIANCE = "invariance"


class Learner(nn.Module):
    """Model, one head per robot, and optionally a helper loss and one that makes robots' features alike.

    The loss is the sum over samples of the sample's own masked mean (weighted, where there is a balance),
    divided by the number of samples, so that it does not depend on how a global batch is split over processes
    or robots.
    """

    def __init__(
        self,
        model: OpenVLA,
        heads: dict[str, ActionHead],
        adapted: bool,
        auxiliary: AuxiliaryLoss | None = None,
        auxiliary_weight: float = 0.0,
        auxiliary_key: str = "",
        invariance: InvarianceObjective | None = None,
        balance: LossBalance | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(heads)
        self.adapted = adapted
        self.auxiliary = auxiliary
        self.auxiliary_weight = auxiliary_weight
        self.auxiliary_key = auxiliary_key
        self.invariance = invariance
        self.balance = balance
        self.reach_all = False  # see `routed.route`
        self._narrow: NarrowCopies | None = None

    def forward(self, batch: PolicyBatch, progress: float = 0.0) -> dict[str, Tensor]:
        """Total loss under "loss"; detached, by row of the batch, "loss_per_sample" [B], "prediction"
        [B, H, 32] and, with a helper loss, "auxiliary" [B]; with an invariance loss, detached scalars
        "invariance/<name>". `progress` is the share of the training that is done, 0..1.
        """
        answers = self.answers(batch)
        per_sample = torch.cat([answer.loss_per_sample for answer in answers])
        output = {
            "loss_per_sample": per_sample.detach(),
            "prediction": torch.cat([answer.prediction.detach() for answer in answers]),
        }
        loss = per_sample.sum() if self.balance is None else self.balance(per_sample, batch.robots).sum()
        if self.auxiliary is not None:
            helper = self._helper_loss(batch, answers)
            output["auxiliary"] = helper.detach()
            loss = loss + self.auxiliary_weight * helper.sum()
        output["loss"] = loss / len(batch)
        if self.invariance is not None:
            extra, numbers = self._invariance_loss(self.invariance, batch, answers, progress)
            output["loss"] = output["loss"] + extra
            output |= {f"invariance/{name}": number for name, number in numbers.items()}
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
        with self._route(batch.robots) if self.adapted else nullcontext():
            seen = look(self.model, batch, question)
        return [seen.rows(rows) for _, rows in batch.segments()]

    def _route(self, robots: list[str]) -> AbstractContextManager[None]:
        if self._narrow is None:
            self._narrow = NarrowCopies(self.model)
        narrow = torch.is_grad_enabled() and self._narrow.refresh()
        return route(self.model, robots, self.reach_all, narrow)

    def _helper_loss(self, batch: PolicyBatch, answers: list[HeadOutput]) -> Tensor:
        assert self.auxiliary is not None
        targets = batch.extra[self.auxiliary_key]
        rows = [segment for _, segment in batch.segments()]
        return torch.cat([self.auxiliary(a, targets[part]) for a, part in zip(answers, rows, strict=True)])

    def _invariance_loss(
        self, objective: InvarianceObjective, batch: PolicyBatch, answers: list[HeadOutput], progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tap = objective.config.tap
        features = torch.cat([tapped(tap, answer.patches, answer.action_hidden) for answer in answers])
        texts = None
        if objective.config.conditional:
            texts = instruction_ids(batch.input_ids, batch.attention_mask)
        return objective(features, objective.index(batch.robots, features.device), progress, texts)

    def _head(self, robot: str) -> ActionHead:
        head = self.heads[robot]
        assert isinstance(head, ActionHead)
        return head

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by robot; those that robots share are under "shared", the adversary's under
        "invariance", learned loss scales under "balance".
        """
        names = (*self.heads, SHARED, INVARIANCE, BALANCE)
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in names}
        owners: dict[nn.Parameter, list[str]] = {}
        for robot, head in self.heads.items():
            for parameter in head.parameters():
                owners.setdefault(parameter, []).append(robot)
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                own = owners.get(parameter, [])  # robots may have a head together: it is listed once
                first = name.split(".")[0]
                rest = first if first in (INVARIANCE, BALANCE) else SHARED
                groups[adapter_of(name) or (own[0] if len(own) == 1 else rest)].append(parameter)
        return {robot: parameters for robot, parameters in groups.items() if parameters}


def _from_summary(head: ActionHead, batch: PolicyBatch) -> HeadOutput:
    assert isinstance(head, SummaryHead)
    assert batch.summary is not None
    return head.answer_summary(batch, batch.summary)
