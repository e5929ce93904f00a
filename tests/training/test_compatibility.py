"""What goes together: a table of refusals; every mode x head trains and resumes, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from vla_adapt.recipe import Recipe
from vla_adapt.training.compatibility import check_compatible, why_uncached
from vla_adapt.training.frozen_features import use_features
from vla_adapt.training.loop import collate
from vla_adapt.training.optimizer import make_optimizer
from vla_adapt.training.ranks import Ranks
from vla_adapt.training.run_state import RunState
from vla_adapt.training.setting import Setting, prepare
from vla_adapt.training.stage_switch import StageSwitch

MakeRecipe = Callable[..., Recipe]
STAGED = {
    "kind": "staged",
    "stages": [
        {"from_step": 0, "train": ["head", "projector"], "learning_rate": 1e-3},
        {"from_step": 2, "train": ["head", {"last_n": 1}], "learning_rate": 1e-4},
    ],
}
MODES: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 2, "shared": {"rank": 2}},
    "qlora": {"kind": "qlora", "rank": 2},
    "frozen": {"kind": "frozen"},
    "last_n": {"kind": "last_n", "layers": 1},
    "staged": STAGED,
    "full": {"kind": "full"},
}
HEADS = ("tokens", "parallel", "readout", "flow")
ALIGNED: dict[str, dict[str, str]] = {
    "none": {},
    **{
        f"{method} at {tap}": {"method": method, "tap": tap}
        for method, tap in product(("dann", "mmd", "coral"), ("patches", "hidden"))
    },
}
INPUTS = tuple(product((True, False), ("none", "token", "soft_prompt")))  # proprio, condition


def plain(head: str, **more: Any) -> dict[str, Any]:
    """A head without any weights where its kind allows that."""
    return {"kind": head, "horizon": 2, "proprio": False} | more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptation": {"kind": "frozen"}, "policy": {"head": plain("tokens")}}, "'frozen' trains the head"),
        (
            {
                "adaptation": {"kind": "staged", "stages": [{"from_step": 0, "train": ["head"]}]},
                "policy": {"head": plain("tokens")},
            },
            "the stage from step 0 trains the head alone",
        ),
        ({"adaptation": STAGED, "train": {"steps": 2}}, "a stage begins at step 2, the run ends after 2"),
        (
            {"adaptation": {"kind": "full"}, "warm_start": {"ur5e": "x"}},
            "'full' trains one base for all robots",
        ),
        ({"adaptation": STAGED, "warm_start": {"ur5e": "x"}}, "'staged' trains one base for all robots"),
        (
            {
                "adaptation": {"kind": "frozen"}, "policy": {"head": plain("readout")},
                "auxiliary": {"weight": 1.0},
            },
            "auxiliary: with adaptation 'frozen' and a readout head nothing that trains",
        ),
        ({"adaptation": {"kind": "none"}, "auxiliary": {"weight": 1.0}}, "auxiliary: with adaptation 'none'"),
        (
            {"adaptation": {"kind": "frozen"}, "invariance": {"method": "dann"}},
            "invariance 'dann' at 'patches': with adaptation 'frozen' nothing that trains",
        ),
        (
            {
                "adaptation": {"kind": "frozen"}, "policy": {"head": plain("flow")},
                "invariance": {"method": "mmd", "tap": "hidden"},
            },
            "invariance 'mmd' at 'hidden': with adaptation 'frozen' nothing",
        ),
        ({"adaptation": {"kind": "none"}, "invariance": {"method": "coral"}}, "invariance 'coral'"),
        ({"train": {"compile": True, "deterministic": True}}, "code compiled for a run that resumes"),
        ({"train": {"compile": True, "checkpointing": True}}, "blocks that compute their activations again"),
        ({"train": {"activation_budget": 0.5}}, "activation_budget is for compiled blocks"),
        ({"train": {"compile": True}, "adaptation": {"kind": "qlora"}}, "4-bit layers were never tried"),
        (
            {
                "train": {"compile": True},
                "mixture": [{"path": "a", "embodiment": "ur5e"}, {"path": "b", "embodiment": "franka_panda"}],
            },
            "train.compile: rows of each robot differ",
        ),
        pytest.param(
            {"train": {"optimizer": {"kind": "paged_adamw_8bit"}}}, "torch sees no GPU; set train.optimizer",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (
            {"adaptation": {"kind": "none"}, "train": {"ema": 0.9}, "validation": {"every": 5}},
            "validation.every, train.ema: with adaptation 'none' nothing trains; leave it out",
        ),
        ({"train": {"steps": 0, "balance": "equal"}}, "train.balance: with train.steps=0 nothing trains"),
    ],
)  # fmt: skip
def test_refusals(make_recipe: MakeRecipe, changes: dict[str, Any], message: str):
    recipe = make_recipe("r", **{"mixture": [{"path": "not there"}], **changes})
    with pytest.raises(ValueError, match=message):
        check_compatible(recipe)
    with pytest.raises(ValueError, match=message):
        prepare(recipe)


GRAPHS = {"cuda_graphs": True, "precision": "bf16"}
ONE_ROBOT = [{"path": "a", "embodiment": "ur5e"}]
TWO_ROBOTS = [*ONE_ROBOT, {"path": "b", "embodiment": "franka_panda"}]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adaptation": {"kind": "full"}}, "adaptation 'full' was never tried"),
        ({"mixture": TWO_ROBOTS}, "rows of each robot differ"),
        ({"train": GRAPHS | {"precision": "fp32"}}, "it takes adapters in bf16"),
        ({"adaptation": {"kind": "lora", "dropout": 0.1}}, "adapters with dropout"),
        ({"train": GRAPHS | {"accumulate": 2}}, "its gradients cannot be added up"),
        ({"train": GRAPHS | {"checkpointing": "towers"}}, "it keeps all activations"),
    ],
)
def test_graphs_are_for_passes_that_are_alike(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], reason: str
):
    plain_recipe = {"mixture": ONE_ROBOT, "train": GRAPHS}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_compatible(make_recipe("r", **plain_recipe))
    with pytest.raises(ValueError, match=f"train.cuda_graphs: {reason}"):
        check_compatible(make_recipe("r", **(plain_recipe | changes)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"train.cuda_graphs: torch sees no GPU"):
        check_compatible(make_recipe("r", **plain_recipe))


def test_all_reasons_are_given_at_once(make_recipe: MakeRecipe):
    both = make_recipe("r", adaptation=STAGED, train={"steps": 1}, warm_start={"ur5e": "x"})
    with pytest.raises(ValueError, match=r"a stage begins at step 2.*; warm_start: "):
        check_compatible(both)


@pytest.mark.parametrize("balance", ["equal", "uncertainty"])
def test_balance_without_effect_is_noted(make_recipe: MakeRecipe, balance: str):
    method = {"kind": "lora", "rank": 2}
    notes = {}
    for name, shared in (("own", None), ("shared", {"rank": 2})):
        recipe = make_recipe("r", adaptation=method | {"shared": shared}, train={"balance": balance})
        notes[name] = check_compatible(recipe)
    assert notes["shared"] == []
    (note,) = notes["own"]
    assert note.startswith(f"train.balance '{balance}' changes next to nothing")


@pytest.mark.parametrize(("mode", "head", "inputs"), list(product(MODES, HEADS, INPUTS)))
def test_every_combination_is_taken_or_refused_by_name(
    make_recipe: MakeRecipe, mode: str, head: str, inputs: tuple[bool, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vla_adapt.training.compatibility.check_bitsandbytes", lambda *_: None)
    proprio, condition = inputs
    given = plain(head, proprio=proprio, condition=condition)
    recipe = make_recipe("r", adaptation=MODES[mode], policy={"head": given})
    if mode == "frozen" and head == "tokens" and not proprio and condition == "none":
        with pytest.raises(ValueError, match="has no weights"):
            check_compatible(recipe)
        return
    notes = check_compatible(recipe)
    kept = mode == "frozen" and head in ("readout", "flow") and condition == "none"
    assert (why_uncached(recipe) is None) == kept
    assert bool(notes) == (mode == "frozen" and not kept)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "head", "aligned"), list(product(MODES, HEADS, ALIGNED)))
def test_every_mode_head_and_invariance_trains_and_resumes(
    make_recipe: MakeRecipe, tmp_path: Path, mode: str, head: str, aligned: str
):
    """Or is refused by name. Choices of proprio and condition are spread over them."""
    places = list(MODES).index(mode), HEADS.index(head), list(ALIGNED).index(aligned)
    inputs, invariance = INPUTS[sum(places) % len(INPUTS)], ALIGNED[aligned]
    if mode == "qlora" and find_spec("bitsandbytes") is None:
        with pytest.raises(ValueError, match="'qlora' needs bitsandbytes"):
            prepare(make_recipe(str(tmp_path), adaptation=MODES[mode]))
        return
    proprio, condition = inputs
    given = plain(head, proprio=proprio, condition=condition)
    method = MODES[mode] | ({"cache_dir": str(tmp_path / "cache")} if mode == "frozen" else {})
    recipe = make_recipe(
        str(tmp_path), adaptation=method, policy={"head": given}, train={"steps": 3, "batch_size": 4},
        invariance=invariance,
    )  # fmt: skip
    untold = head in ("readout", "flow") and condition == "none"
    if mode == "frozen" and invariance and (untold or invariance.get("tap") != "hidden"):
        with pytest.raises(ValueError, match="nothing that trains lies before these features"):
            prepare(recipe)
        return
    whole = started(recipe)
    before = weights(whole)
    for step in range(3):
        if step == 2:
            whole.state.write(tmp_path, rank=0)
        whole.step(step)
    after = weights(whole)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    again = started(recipe)
    again.state.read(tmp_path, rank=0)
    again.step(2)
    resumed = weights(again)
    assert all(torch.equal(after[name], resumed[name]) for name in after)


class Started:
    """A run that can take single steps, as `training.loop` does them."""

    def __init__(self, recipe: Recipe, setting: Setting) -> None:
        self.recipe, self.setting, self.learner = recipe, setting, setting.learner.train()
        config = recipe.train.optimizer
        rates = recipe.adaptation.rates(config.learning_rate)
        self.optimizer, self.schedule = make_optimizer(config, self.learner.groups(), 3, rates)
        self.state = RunState(self.learner, self.optimizer, self.schedule)
        self.stages = StageSwitch(self.learner, recipe.adaptation)

    def step(self, step: int) -> None:
        torch.manual_seed(step)
        windows = [self.setting.mixture.window(n) for n in range(4 * step, 4 * step + 4)]
        batch = collate(self.setting.builder, list(self.setting.robots), windows)[0]
        with self.stages.at(step):
            loss = self.learner(batch)["loss"]
            assert torch.isfinite(loss)
            loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)


def started(recipe: Recipe) -> Started:
    setting = prepare(recipe)
    accelerator = Accelerator(cpu=True)
    use_features(accelerator, Ranks(accelerator), setting)
    return Started(recipe, setting)


def weights(run: Started) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in run.learner.named_parameters() if p.requires_grad}
