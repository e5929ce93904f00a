"""Two ways to take a LoRA training step on the same weights and batch: ours, and that of OpenVLA's script."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vla_adapt.actions.normalize import Normalizer, Statistics
from vla_adapt.adaptation.method import Lora
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.configuration import OpenVLAConfig
from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import tiny_config, tiny_openvla
from vla_adapt.policy.token_head import TokenQuestion
from vla_adapt.training.learner import Learner
from vla_adapt.training.meter import Meter
from vla_adapt.training.optimizer import OptimizerConfig, clip_per_robot, make_optimizer
from vla_adapt.types import NUM_SLOTS

ROBOT, RANK, SLOTS = "robot", 32, 7
TOKENS = HeadConfig(kind="tokens", horizon=1, proprio=False)
PARALLEL = HeadConfig(kind="parallel", horizon=8, proprio=False)
PROMPT = (20, 30)  # tokens, as "In: What action should the robot take to ...?" has


@dataclass(frozen=True)
class Size:
    """A model to measure, and the batch it gets."""

    name: str
    samples: int
    turns: int
    text: dict[str, int] = field(default_factory=dict)
    tower: dict[str, int] = field(default_factory=dict)

    def config(self) -> OpenVLAConfig:
        if self.name == "7B":
            return OpenVLAConfig({"model_type": "openvla"})
        raw = tiny_config().raw
        raw["text_config"] |= self.text
        for tower in raw["vision_towers"]:
            tower |= self.tower
        return OpenVLAConfig(raw)


def sizes(device: str, quick: bool) -> list[Size]:
    """What is measured; the first gives the headline numbers."""
    if device == "cuda":
        return [Size("7B", 16, 2 if quick else 3)]
    wide = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 12}
    wide |= {"num_key_value_heads": 12, "vocab_size": 8064}
    tower = {"width": 384, "depth": 4, "heads": 6, "mlp_width": 1536}
    return [
        Size("tiny twin", 32, 5 if quick else 11),
        *([] if quick else [Size("width 768", 8, 5, wide, tower)]),
    ]


class Bench:
    """One model with its adapters, and every way to take a step on it.

    Args:
        size: what is built; the weights are always the same.
        device: "cpu" or "cuda".
        samples: of the batch; None: as many as `size` says.
        seed: of the batch.

    Attributes:
        forwards: by head, what is called for a forward pass of ours: the learners, or what wraps them.
        plain_forward: what is called for one of the original's.
    """

    def __init__(self, size: Size, device: str, samples: int | None = None, seed: int = 0) -> None:
        torch.manual_seed(0)
        self.device, self.size = device, size
        self.samples = samples or size.samples
        self.model = _model(size, device)
        heads = {head.kind: make_head(head, self.model) for head in (TOKENS, PARALLEL)}
        Lora(rank=RANK, alpha=16, targets="all_linear").prepare(self.model, [ROBOT])
        for name, parameter in self.model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.01)
        self.learners = {
            k: Learner(self.model, {ROBOT: head}, True).to(device).train() for k, head in heads.items()
        }
        self.batches = {
            head.kind: batch_of(self.model, self.samples, head.horizon, seed).to(device)
            for head in (TOKENS, PARALLEL)
        }
        slots = np.arange(NUM_SLOTS) < SLOTS
        ones = np.where(slots, 1.0, 0.0)
        self.meter = Meter(
            {ROBOT: Normalizer(Statistics(0 * ones, ones, -ones, ones, -ones, ones, slots, 9))}
        )
        self.labels = _labels(self.learners["tokens"], self.batches["tokens"])
        self.forwards: dict[str, nn.Module] = dict(self.learners)
        self.plain_forward: nn.Module = PlainForward(self.model)
        self.plain_adamw = torch.optim.AdamW(adapters(self.model), lr=1e-6)
        self.adamw = {
            kind: make_optimizer(OptimizerConfig(learning_rate=1e-6), learner.groups(), 10**6)[0]
            for kind, learner in self.learners.items()
        }

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")

    def our_loss(self, head: str = "tokens") -> dict[str, Tensor]:
        with self.autocast():
            return self.forwards[head](self.batches[head])

    def ours(self, head: str = "tokens", adamw: torch.optim.Optimizer | None = None) -> None:
        """The step of `training.loop`."""
        output = self.our_loss(head)
        output["loss"].backward()
        assert torch.isfinite(output["loss"])
        clip_per_robot(self.learners[head].groups().values(), 1.0)
        optimizer = adamw or self.adamw[head]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.meter.add(output, self.batches[head])

    def plain_loss(self) -> tuple[Tensor, Tensor]:
        """Loss and logits of the original."""
        with self.autocast():
            return self.plain_forward(self.batches["tokens"].pixel_values, *self.labels)

    def baseline(self) -> None:
        """The step of the original's `finetune.py`."""
        loss, logits = self.plain_loss()
        loss.backward()
        wanted = self.labels[2][:, 1:]
        chosen = logits[:, self.model.num_patches : -1].argmax(dim=2)
        mask = wanted > self.model.action_tokenizer().first_id
        float(((chosen == wanted) & mask).sum().float() / mask.sum().float())
        codec = self.model.action_tokenizer()
        told, right = (codec.decode(tokens[mask].cpu().numpy()) for tokens in (chosen, wanted))
        nn.functional.l1_loss(torch.from_numpy(told), torch.from_numpy(right)).item()
        loss.item()
        self.plain_adamw.step()
        self.plain_adamw.zero_grad()


class PlainForward(nn.Module):
    """What `OpenVLAForActionPrediction` of the original does with labels, on PEFT's layers."""

    def __init__(self, model: OpenVLA) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: Tensor, ids: Tensor, mask: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss, and logits at all positions."""
        model: Any = self.model
        patches = model.projector(model.vision_backbone(pixel_values.to(model.dtype)))
        text = model.language_model.model.embed_tokens(ids)
        seen = mask.new_ones(patches.shape[:2])
        output = model.language_model(
            inputs_embeds=torch.cat([text[:, :1], patches, text[:, 1:]], dim=1),
            attention_mask=torch.cat([mask[:, :1], seen, mask[:, 1:]], dim=1),
            labels=torch.cat([labels[:, :1], seen.long().fill_(-100), labels[:, 1:]], dim=1),
            use_cache=False,
        )
        return output.loss, output.logits


def adapters(model: OpenVLA) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _model(size: Size, device: str) -> OpenVLA:
    """Random weights: the tiny twin's own on a CPU, bfloat16 made on the GPU for the 7B model."""
    if size.name == "tiny twin":
        return tiny_openvla(seed=0)
    if device == "cpu":
        return OpenVLA(size.config())
    with torch.device("meta"):
        model = OpenVLA(size.config()).to(torch.bfloat16)
    model.to_empty(device=device)
    model.restore_buffers(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


def batch_of(model: OpenVLA, samples: int, horizon: int, seed: int = 0) -> PolicyBatch:
    """Random images, actions and texts; texts differ in length, as those of a mixture do."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(PROMPT[0], PROMPT[1] + 1, (samples, 1), generator=draw)
    mask = torch.arange(int(lengths.max())) < lengths
    slots = (torch.arange(NUM_SLOTS) < SLOTS).expand(samples, -1)
    none = torch.zeros(samples, NUM_SLOTS)
    side, ids = model.config.image_sizes[0], torch.randint(5, 200, mask.shape, generator=draw)
    return PolicyBatch(
        input_ids=ids.masked_fill(~mask, model.config.pad_token_id),
        attention_mask=mask,
        pixel_values=torch.randn(samples, 6, side, side, generator=draw).to(model.dtype),
        proprio=none, proprio_mask=none.bool(),
        slot_mask=slots, action_mask=slots[:, None].repeat(1, horizon, 1),
        action=(2 * torch.rand(samples, horizon, NUM_SLOTS, generator=draw) - 1) * slots[:, None],
        robots=[ROBOT] * samples,
    )  # fmt: skip


def _labels(learner: Learner, batch: PolicyBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels of prompt, action tokens and EOS, as the original's data loader gives them."""
    question: Any = learner.heads[ROBOT].ask(learner.model, batch)  # type: ignore[operator]
    assert isinstance(question, TokenQuestion)
    assert isinstance(question.read, Tensor)
    wide = partial(nn.functional.pad, pad=(0, 1))
    places = question.read
    ids = wide(question.input_ids, value=learner.model.config.pad_token_id).scatter(
        1, places + 1, question.labels
    )
    labels = torch.full_like(ids, -100).scatter(1, places + 1, question.labels)
    return ids, wide(question.attention_mask, value=False).scatter(1, places + 1, True), labels
