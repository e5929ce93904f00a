"""Which parts of a recipe go together: what cannot work is refused before it starts, with its reason."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vla_adapt.adaptation.method import Frozen, Lora, Nothing, QLora, Staged
from vla_adapt.adaptation.quantized import check_bitsandbytes
from vla_adapt.policy.heads import HeadConfig, head_class
from vla_adapt.recipe import Recipe
from vla_adapt.training.trackers import check_trackers

# Says why a recipe cannot work, or None.
Rule = Callable[[Recipe], str | None]


def check_compatible(recipe: Recipe) -> list[str]:
    """Look at a recipe before anything is opened.

    Returns:
        Notes on what it will not do that it might.

    Raises:
        ValueError: parts that do not go together (all reasons), or a library that is not installed.
    """
    reasons = [reason for rule in RULES if (reason := rule(recipe)) is not None]
    if reasons:
        raise ValueError("; ".join(reasons))
    check_trackers(recipe.train.trackers)
    if isinstance(recipe.adaptation, QLora):
        check_bitsandbytes("adaptation 'qlora'", "adaptation.kind=lora")
    if recipe.train.optimizer.kind != "adamw":
        check_bitsandbytes(f"optimizer '{recipe.train.optimizer.kind}'", "train.optimizer.kind=adamw")
    notes = []
    reason = why_uncached(recipe)
    if isinstance(recipe.adaptation, Frozen) and reason is not None:
        notes.append(f"the frozen backbone runs in every step, its features are not kept: {reason}")
    if recipe.train.balance != "none" and _robots_share_nothing(recipe):
        notes.append(
            f"train.balance '{recipe.train.balance}' changes next to nothing: all that trains is some "
            "robot's own, and Adam does not see the scale of a loss"
        )
    return notes


def why_uncached(recipe: Recipe) -> str | None:
    """Why the backbone has to run in every step; None: its features can be kept (`frozen_features`)."""
    head = recipe.policy.head
    if not isinstance(recipe.adaptation, Frozen):
        return "the backbone trains"
    if not recipe.adaptation.cache:
        return "adaptation.cache is false"
    if not head_class(head).cacheable:
        return f"the {head.kind} head puts tokens of its own through the backbone (readout and flow do not)"
    if head.condition != "none":
        return "the condition is learned in front of the backbone"
    if recipe.augmentation.enabled and not recipe.policy.blind:
        return "every augmented image is seen only once"
    if recipe.auxiliary.weight:
        return "the auxiliary loss reads all patches"
    return None


def _nothing_to_train(recipe: Recipe) -> str | None:
    if not isinstance(recipe.adaptation, Frozen) or _has_weights(recipe.policy.head):
        return None
    return (
        "adaptation 'frozen' trains the head: a tokens head without proprio and condition has no weights; "
        "set policy.head.proprio=true, a condition or another head, or adapt by lora"
    )


def _stage_of_nothing(recipe: Recipe) -> str | None:
    if not isinstance(recipe.adaptation, Staged) or _has_weights(recipe.policy.head):
        return None
    for stage in recipe.adaptation.stages:
        if set(stage.train) == {"head"}:
            return (
                f"adaptation 'staged': the stage from step {stage.from_step} trains the head alone, and a "
                "tokens head without proprio and condition has no weights; train a further part in it"
            )
    return None


def _stage_never_reached(recipe: Recipe) -> str | None:
    if not isinstance(recipe.adaptation, Staged) or not recipe.train.steps:
        return None
    last, steps = recipe.adaptation.stages[-1].from_step, recipe.train.steps
    if last < steps:
        return None
    return (
        f"adaptation 'staged': a stage begins at step {last}, the run ends after {steps}; begin it earlier, "
        "or raise train.steps"
    )


def _warm_start_of_a_shared_base(recipe: Recipe) -> str | None:
    if not recipe.warm_start or not recipe.adaptation.changes_base:
        return None
    return (
        f"warm_start: adaptation '{recipe.adaptation.kind}' trains one base for all robots; set `base` to "
        "start from another"
    )


def _helper_loss_without_effect(recipe: Recipe) -> str | None:
    head = recipe.policy.head
    fixed = isinstance(recipe.adaptation, Frozen) and head_class(head).cacheable and head.condition == "none"
    if not recipe.auxiliary.weight or not (fixed or isinstance(recipe.adaptation, Nothing)):
        return None
    return (
        f"auxiliary: with adaptation '{recipe.adaptation.kind}' and a {head.kind} head nothing that trains "
        "lies before the features it reads; set auxiliary.weight=0"
    )


def _invariance_without_effect(recipe: Recipe) -> str | None:
    """An invariance loss must find something that trains before the features it looks at."""
    method, head = recipe.adaptation, recipe.policy.head
    if not recipe.invariance.active:
        return None
    told = head.condition != "none" or not head_class(head).cacheable
    if isinstance(method, Nothing) or (
        isinstance(method, Frozen) and (recipe.invariance.tap == "patches" or not told)
    ):
        return (
            f"invariance '{recipe.invariance.method}' at '{recipe.invariance.tap}': with adaptation "
            f"'{method.kind}' nothing that trains lies before these features; adapt by lora, or set "
            "invariance.method=none"
        )
    return None


def _paged_without_gpu(recipe: Recipe) -> str | None:
    if recipe.train.optimizer.kind != "paged_adamw_8bit" or torch.cuda.is_available():
        return None
    return (
        "optimizer 'paged_adamw_8bit' pages between a GPU's and the host's memory, and torch sees no GPU; "
        "set train.optimizer.kind=adamw_8bit"
    )


def _graphs_without_a_use(recipe: Recipe) -> str | None:
    """Only passes that are alike are replayed; gradients lie where the next pass of a recording writes."""
    train = recipe.train
    if not train.cuda_graphs:
        return None
    reasons = {
        "torch sees no GPU": not torch.cuda.is_available(),
        f"adaptation '{recipe.adaptation.kind}' was never tried": type(recipe.adaptation) is not Lora,
        "rows of each robot differ from batch to batch": _several_robots(recipe),
        "it takes adapters in bf16 (train.precision)": train.precision != "bf16",
        "adapters with dropout are not recorded": bool(getattr(recipe.adaptation, "dropout", 0.0)),
        "its gradients cannot be added up (train.accumulate)": train.accumulate > 1,
        "it keeps all activations of the towers (train.checkpointing)": bool(train.checkpointing),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return None if reason is None else f"train.cuda_graphs: {reason}; set train.cuda_graphs=false"


def _compile_of_many_robots(recipe: Recipe) -> str | None:
    if not recipe.train.compile or not recipe.adaptation.adapts or not _several_robots(recipe):
        return None
    return (
        "train.compile: rows of each robot differ from batch to batch, and every other split would be "
        "compiled anew; train one robot at a time, or set train.compile=false"
    )


def _budget_of_no_compiler(recipe: Recipe) -> str | None:
    if recipe.train.activation_budget == 1 or recipe.train.compile:
        return None
    return (
        "train.activation_budget is for compiled blocks; set train.compile=true, or take train.checkpointing "
        "and train.activation_budget=1"
    )


def _compile_of_what_is_not_plain(recipe: Recipe) -> str | None:
    train = recipe.train
    if not train.compile:
        return None
    if isinstance(recipe.adaptation, QLora):
        return "train.compile: 4-bit layers were never tried compiled; set train.compile=false"
    if train.checkpointing is True:
        return (
            "train.compile: after the wait, blocks that compute their activations again run plainly all the "
            "same (seen with PyTorch 2.13); take train.checkpointing=towers or false, or no train.compile"
        )
    if train.deterministic:
        return (
            "train.compile: code compiled for a run that resumes may round otherwise, which "
            "train.deterministic excludes; set one of them to false"
        )
    return None


def _options_of_training_without_training(recipe: Recipe) -> str | None:
    if recipe.train.steps and not isinstance(recipe.adaptation, Nothing):
        return None
    train = recipe.train
    asked = {
        "validation.every": recipe.validation.every, "train.ema": train.ema,
        "train.balance": train.balance != "none",
    }  # fmt: skip
    given = [name for name, is_set in asked.items() if is_set]
    if not given:
        return None
    why = f"adaptation '{recipe.adaptation.kind}'" if train.steps else "train.steps=0"
    return f"{', '.join(given)}: with {why} nothing trains; leave it out"


RULES: tuple[Rule, ...] = (
    _paged_without_gpu,
    _graphs_without_a_use,
    _compile_of_many_robots,
    _compile_of_what_is_not_plain,
    _budget_of_no_compiler,
    _nothing_to_train,
    _stage_of_nothing,
    _stage_never_reached,
    _warm_start_of_a_shared_base,
    _helper_loss_without_effect,
    _invariance_without_effect,
    _options_of_training_without_training,
)


def _several_robots(recipe: Recipe) -> bool:
    return len({source.embodiment for source in recipe.mixture_spec.sources}) > 1


def _robots_share_nothing(recipe: Recipe) -> bool:
    method = recipe.adaptation
    return isinstance(method, Frozen) or (isinstance(method, Lora) and method.shared is None)


def _has_weights(head: HeadConfig) -> bool:
    return head.kind != "tokens" or head.proprio or head.condition != "none"
