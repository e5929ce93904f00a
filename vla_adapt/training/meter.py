"""Running sums per robot, added up over processes: loss, token accuracy, action error in physical units."""

from __future__ import annotations

import torch
from torch import Tensor

from vla_adapt.actions.normalize import Normalizer
from vla_adapt.actions.tokens import ActionTokenizer
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.types import NUM_SLOTS, SLOT_GROUPS

_HEAD = 5  # loss, samples, auxiliary, token hits, tokens
_OF_BATCHES = ("strength", "accuracy", "cross_entropy", "mmd", "coral")  # of the invariance loss
_BINS = ActionTokenizer(vocab_size=512)


class Meter:
    """Sums for a list of robots as one tensor, so that a single reduction adds up all processes.

    Its last row is of whole batches: sum and count of each number of the invariance loss.
    """

    def __init__(self, normalizers: dict[str, Normalizer]) -> None:
        self.robots = list(normalizers)
        self._normalizers = normalizers
        self.sums = torch.zeros(len(self.robots) + 1, _HEAD + 2 * NUM_SLOTS, dtype=torch.float64)

    def add(self, output: dict[str, Tensor], batch: PolicyBatch) -> None:
        """Account for one forward pass of the learner."""
        assert batch.action is not None
        assert batch.action_mask is not None
        for place, name in enumerate(_OF_BATCHES):
            if f"invariance/{name}" in output:
                self.sums[-1, 2 * place] += output[f"invariance/{name}"].item()
                self.sums[-1, 2 * place + 1] += 1
        predictions = output["prediction"].float().cpu()
        targets, masks = batch.action.float().cpu(), batch.action_mask.cpu()
        for robot, rows in batch.segments():
            row = self.sums[self.robots.index(robot)]
            prediction, target, mask = predictions[rows], targets[rows], masks[rows]
            row[0] += output["loss_per_sample"][rows].sum().item()
            row[1] += len(target)
            if "auxiliary" in output:
                row[2] += output["auxiliary"][rows].sum().item()
            hits = _bins(prediction[mask]) == _bins(target[mask])
            row[3] += hits.sum().item()
            row[4] += mask.sum().item()
            normalizer = self._normalizers[robot]
            error = (normalizer.denormalize(prediction) - normalizer.denormalize(target)).abs() * mask
            row[_HEAD : _HEAD + NUM_SLOTS] += error.sum(dim=(0, 1)).double()
            row[_HEAD + NUM_SLOTS :] += mask.sum(dim=(0, 1)).double()

    def summary(self, sums: Tensor) -> dict[str, dict[str, float]]:
        """Robot -> metrics, from sums added up over processes. Robots without a sample are left out.

        Those of the invariance loss are of whole batches, the same for all robots.
        """
        of_batches = {
            f"invariance_{name}": (sums[-1, 2 * place] / sums[-1, 2 * place + 1]).item()
            for place, name in enumerate(_OF_BATCHES)
            if sums[-1, 2 * place + 1] > 0
        }
        return {
            robot: _metrics(sums[index].cpu()) | of_batches
            for index, robot in enumerate(self.robots)
            if sums[index, 1] > 0
        }

    def slot_errors(self, sums: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Robot -> sums of absolute errors by slot, SI units, and how many numbers they are of; both [32]."""
        parts = sums[:-1, _HEAD:].cpu().split(NUM_SLOTS, dim=1)
        return {robot: (parts[0][index], parts[1][index]) for index, robot in enumerate(self.robots)}

    def reset(self) -> None:
        self.sums.zero_()


def _bins(values: Tensor) -> Tensor:
    return torch.as_tensor(_BINS.encode(values.clamp(-1, 1).numpy()))


def _metrics(row: Tensor) -> dict[str, float]:
    loss, samples, auxiliary, hits, tokens = row[:_HEAD].tolist()
    metrics = {"loss": loss / samples, "token_accuracy": hits / max(tokens, 1.0), "samples": samples}
    if auxiliary:
        metrics["auxiliary"] = auxiliary / samples
    errors, counts = row[_HEAD : _HEAD + NUM_SLOTS], row[_HEAD + NUM_SLOTS :]
    for name, group in SLOT_GROUPS.items():
        for unit in dict.fromkeys(group.units):
            slots = [group.start + axis for axis, word in enumerate(group.units) if word == unit]
            if counts[slots].sum() > 0:
                key = f"l1_{name}_{unit}".replace("/", "_per_")
                metrics[key] = (errors[slots].sum() / counts[slots].sum()).item()
    return metrics
