"""Routed LoRA against plain PEFT: each robot's rows alone through its own adapter, outputs and gradients."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from vla_adapt.adaptation import low_rank
from vla_adapt.adaptation.adapter_name import SHARED, adapter_of
from vla_adapt.adaptation.method import TARGETS
from vla_adapt.adaptation.routed import RoutedConv2d, RoutedLinear, route, routed
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.row_context import RowContext

ROWS = ["left", "left", "mid", "right", "right", "right"]
WITH_CONVOLUTIONS = r".*\.(q_proj|projection|patch_embedding)"  # of both towers, as the original has them
RANKS = {"left": 4, "mid": 2, "right": 4, "absent": 4}


@dataclass
class Case:
    """How adapters are made."""

    targets: str = "attention"
    rslora: bool = False
    shared: int = 0
    dropout: float = 0.0
    dtype: torch.dtype = torch.float32


def build(base: Path, case: Case, ours: bool) -> OpenVLA:
    """Adapters of different ranks with made-up weights, the same for routed layers and for plain PEFT."""
    model = OpenVLA.from_pretrained(base, dtype=case.dtype)
    ranks = RANKS | ({SHARED: case.shared} if case.shared else {})
    peft_model = None
    for name, rank in ranks.items():
        config = LoraConfig(
            r=rank, lora_alpha=3 * rank + 1, use_rslora=case.rslora, lora_dropout=case.dropout,
            target_modules=TARGETS.get(case.targets, case.targets),
        )  # fmt: skip
        if ours:
            config = routed(config, model.rows)
        if peft_model is None:
            peft_model = get_peft_model(model, config, adapter_name=name)
        else:
            peft_model.add_adapter(name, config)
    draw = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(adapter_of(name) is not None)
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.05, generator=draw)
    return model


def run(model: OpenVLA, rows: slice = slice(None), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of some rows of the batch, and a loss that is a sum over rows."""
    draw = torch.Generator().manual_seed(seed)
    count = len(ROWS)
    ids = torch.randint(5, 200, (count, 5), generator=draw)
    pixels = torch.randn(count, 6, 84, 84, generator=draw)
    weight = torch.randn(count, 1, model.config.text["vocab_size"], generator=draw) / 100
    logits = model(ids[rows], pixel_values=pixels[rows].to(model.dtype)).logits
    return logits, (logits * weight[rows]).mean(dim=1).sum()


def gradients(model: OpenVLA) -> dict[str, Tensor | None]:
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad or p.grad is not None}


def alone(
    base: Path, case: Case, autocast: bool = False, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Plain PEFT, one robot after the other, by PEFT's own means."""
    model = build(base, case, ours=False)
    logits = []
    for robot in dict.fromkeys(ROWS):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.set_adapter([robot, SHARED] if case.shared else [robot])
        rows = slice(ROWS.index(robot), ROWS.index(robot) + ROWS.count(robot))
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            some, loss = run(model, rows, seed)
        loss.backward()
        logits.append(some.detach())
    return torch.cat(logits), gradients(model)


def check(
    got: tuple[Tensor, dict[str, Tensor | None]],
    wanted: tuple[Tensor, dict[str, Tensor | None]],
    bound: float,
) -> None:
    assert (got[0] - wanted[0]).abs().max() <= bound * wanted[0].abs().max()
    trained = {name for name, grad in got[1].items() if grad is not None}
    assert trained == {name for name, grad in wanted[1].items() if grad is not None}
    assert {adapter_of(name) for name in trained} >= set(ROWS)
    assert not any(adapter_of(name) == "absent" for name in trained)
    largest = max(float(wanted[1][name].abs().max()) for name in trained)  # type: ignore[union-attr]
    for name in trained:
        mine, theirs = got[1][name], wanted[1][name]
        assert mine is not None
        assert theirs is not None
        scale = largest if bound > 1e-4 else max(float(theirs.abs().max()), 1e-3 * largest)
        assert (mine - theirs).abs().max() <= bound * scale, name


@pytest.mark.parametrize(("checkpointing", "dense"), [(False, True), (True, False)])
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(targets="all_linear", shared=3),
        Case(rslora=True, shared=2),
        Case(targets="all_linear", rslora=True),
        Case(targets=WITH_CONVOLUTIONS, shared=2),
    ],
    ids=str,
)
def test_equals_each_robot_alone_in_plain_peft(
    random_base: Path, case: Case, checkpointing: bool, dense: bool, monkeypatch: pytest.MonkeyPatch
):
    """The backward pass comes after the route has ended, which checkpointed layers must not notice."""
    monkeypatch.setattr(low_rank, "dense_is_cheaper", lambda *_: dense)
    model = build(random_base, case, ours=True).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    with route(model, ROWS):
        logits, loss = run(model)
    loss.backward()
    check((logits.detach(), gradients(model)), alone(random_base, case), 1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_base_with_float32_adapters(random_base: Path, autocast: bool):
    case = Case(dtype=torch.bfloat16, shared=2)
    model = build(random_base, case, ours=True).train()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model.gradient_checkpointing_enable()
    with route(model, ROWS), torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        logits, loss = run(model)
    loss.backward()
    check((logits.detach(), gradients(model)), alone(random_base, case, autocast), 0.05)


@pytest.mark.parametrize("targets", ["attention", WITH_CONVOLUTIONS], ids=["linear", "convolutions too"])
@pytest.mark.parametrize("robots", [ROWS, [None] * len(ROWS)])
def test_all_adapters_can_be_reached_by_zeros(random_base: Path, robots: list[str | None], targets: str):
    model = build(random_base, Case(targets, shared=2), ours=True)
    found = []
    for reach_all in (False, True):
        with route(model, robots, reach_all):
            loss = run(model)[1]
        if loss.requires_grad:
            loss.backward()
        found.append(gradients(model))
        model.zero_grad(set_to_none=True)
    without, reached = found
    seen = {*robots, SHARED} - {None} if robots == ROWS else set()
    for name, gradient in reached.items():
        assert gradient is not None, name
        wanted = without[name]
        assert (wanted is None) == (adapter_of(name) not in seen), name
        assert torch.equal(gradient, torch.zeros_like(gradient) if wanted is None else wanted), name


def test_two_passes_of_different_routes_share_one_backward_pass(random_base: Path):
    case = Case()
    model = build(random_base, case, ours=True).train()
    model.gradient_checkpointing_enable()
    with route(model, ROWS):
        _, first = run(model)
    with route(model, ROWS[::-1]):
        _, second = run(model, seed=1)
    (first + second).backward(retain_graph=True)
    once = {name: grad.clone() for name, grad in gradients(model).items() if grad is not None}
    (first + second).backward()
    for name, grad in gradients(model).items():
        if grad is not None:
            torch.testing.assert_close(grad, 2 * once[name])
    by_one = build(random_base, case, ours=True)
    for rows, seed in ((ROWS, 0), (ROWS[::-1], 1)):
        with route(by_one, rows):
            run(by_one, seed=seed)[1].backward()
    for name, grad in gradients(by_one).items():
        if grad is not None:
            torch.testing.assert_close(once[name], grad, atol=1e-6, rtol=1e-4)


def test_dropout_is_peft_s_for_one_robot_and_off_in_evaluation(random_base: Path):
    case = Case(dropout=0.4)
    ours, plain = build(random_base, case, ours=True), build(random_base, case, ours=False)
    seen = []
    for model in (ours.train(), plain.train()):
        torch.manual_seed(0)
        with route(model, ["left"] * 6) if model is ours else nullcontext():
            seen.append(run(model)[0])
    torch.testing.assert_close(*seen, atol=1e-5, rtol=1e-5)
    with route(ours, ROWS):
        dropped = run(ours)[0]
        ours.eval()
        torch.testing.assert_close(run(ours)[0], alone(random_base, Case())[0], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(dropped, run(ours)[0], atol=1e-3)


def test_several_images_per_sample_pass_that_sample_s_adapter(random_base: Path):
    model = build(random_base, Case(targets="all_linear"), ours=True)
    images = torch.randn(6, 6, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with route(model, ["left", "right"]):
            together = model.project(images)
        for robot, part in (("left", slice(0, 3)), ("right", slice(3, 6))):
            with route(model, [robot] * 3):
                torch.testing.assert_close(together[part], model.project(images[part]), atol=1e-5, rtol=1e-5)


def test_no_robot_is_the_bare_base(random_base: Path):
    bare, model = OpenVLA.from_pretrained(random_base), build(random_base, Case(shared=2), ours=True)
    rows = [*ROWS[:2], None, *ROWS[3:]]
    with torch.inference_mode(), route(model, rows):
        mixed, _ = run(model)
        with route(model, [None] * 6):
            nothing, _ = run(model)
    with torch.no_grad():
        wanted, _ = run(bare)
    torch.testing.assert_close(nothing, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[2], wanted[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[3:], alone(random_base, Case(shared=2))[0][3:], atol=1e-5, rtol=1e-4)
    with route(bare, [None] * 6), torch.no_grad():
        torch.testing.assert_close(run(bare)[0], wanted)


def small_model(**options: object) -> OneLayer:
    return with_adapter(OneLayer(), LoraConfig(r=2, target_modules=["fc"], **options))  # type: ignore[arg-type]


class OneLayer(nn.Module):
    """The least that can be routed."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.fc = RowContext(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def with_adapter(model: OneLayer, config: LoraConfig) -> OneLayer:
    get_peft_model(model, routed(config, model.rows), adapter_name="left")  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no samples"),
        (["left", "right", "left"], "samples of 'left' are not next to each other"),
        (["left", "rigth"], "no adapter for 'rigth' in this model; it has absent, left, mid, right"),
        (["left", SHARED], "no adapter for 'shared'"),
    ],
)
def test_routes_that_cannot_be_are_refused(random_base: Path, rows: list[str], said: str):
    model = build(random_base, Case(shared=2), ours=True)
    with pytest.raises(ValueError, match=said), route(model, rows):
        pass
    assert model.rows.current is None


def test_batches_that_do_not_fit_the_route_are_refused():
    model = small_model()
    with route(model, ["left", "left"]), pytest.raises(ValueError, match="got 3 rows, the route is for 2"):
        model(torch.ones(3, 4))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_adapters_are_refused(options: dict[str, bool]):
    model = small_model(**options)
    with route(model, ["left"]), pytest.raises(ValueError, match="'left' is not plain LoRA"):
        model(torch.ones(1, 4))


def test_merged_adapters_are_refused_and_disabled_ones_are_off():
    model = small_model()
    layer = model.fc
    assert isinstance(layer, RoutedLinear)
    nn.init.normal_(layer.lora_B["left"].weight)
    x = torch.ones(1, 4)
    layer.enable_adapters(False)
    with route(model, ["left"]):
        torch.testing.assert_close(model(x), layer.base_layer(x))
    layer.enable_adapters(True)
    layer.merge()
    with route(model, ["left"]), pytest.raises(ValueError, match="unmerge"):
        model(x)


def test_a_layer_that_wraps_another_kind_of_linear_is_left_unharmed():
    """Its result may be needed elsewhere: nothing is added to it in place."""
    kept: list[Tensor] = []

    class Keeps(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            kept.append(super().forward(input))
            return kept[-1]

    model = OneLayer()
    model.fc = Keeps(4, 4)
    with_adapter(model, LoraConfig(r=2, target_modules=["fc"]))
    layer = model.fc
    assert isinstance(layer, RoutedLinear)
    nn.init.normal_(layer.lora_B["left"].weight)
    with route(model, ["left"]), torch.no_grad():
        assert not torch.allclose(model(torch.ones(1, 4)), kept[0])
    torch.testing.assert_close(
        kept[0], nn.functional.linear(torch.ones(1, 4), model.fc.weight, model.fc.bias)
    )


def test_convolutions_of_both_towers_are_routed_and_an_adapter_without_them_passes_by(random_base: Path):
    """Robot after robot in one pass is each robot alone, also beside one whose adapter has no convolution."""
    model = OpenVLA.from_pretrained(random_base)
    draw = torch.Generator().manual_seed(5)
    for name, targets in (("left", WITH_CONVOLUTIONS), ("mid", r".*\.q_proj"), ("right", WITH_CONVOLUTIONS)):
        inject_adapter_in_model(
            routed(LoraConfig(r=2, target_modules=targets), model.rows), model, adapter_name=name
        )
    for name, parameter in model.named_parameters():
        if adapter_of(name):
            nn.init.normal_(parameter, std=0.2, generator=draw)
    layers = [module for module in model.modules() if isinstance(module, RoutedConv2d)]
    assert [sorted(layer.lora_A) for layer in layers] == [["left", "right"]] * 2
    with torch.no_grad():
        with route(model, ROWS):
            together = run(model)[0]
        parts = []
        for robot in dict.fromkeys(ROWS):
            rows = slice(ROWS.index(robot), ROWS.index(robot) + ROWS.count(robot))
            with route(model, [robot] * ROWS.count(robot)):
                parts.append(run(model, rows)[0])
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-5, rtol=1e-4)
    with torch.no_grad(), route(model, ["right"] * 2):
        assert not torch.allclose(run(model, slice(0, 2))[0], parts[0], atol=1e-3)
