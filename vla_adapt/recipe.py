"""A recipe: everything one training run needs, as one YAML file, checked before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from vla_adapt.adaptation.licenses import CardConfig
from vla_adapt.adaptation.method import Lora, Method
from vla_adapt.adaptation.robot_policy import ObservationConfig
from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec, Source
from vla_adapt.invariance.objective import InvarianceConfig
from vla_adapt.policy.heads import HeadConfig
from vla_adapt.randomization.visual import AugmentationConfig, CenterCropArea
from vla_adapt.resources import recipes_dir
from vla_adapt.suggest import did_you_mean, parse_yaml, validate_model
from vla_adapt.training.auxiliary import AuxiliaryConfig
from vla_adapt.training.early_stop import ValidationConfig
from vla_adapt.training.loss_balance import Balancing
from vla_adapt.training.optimizer import OptimizerConfig
from vla_adapt.training.trackers import TrackerName


class PolicyConfig(BaseModel):
    """What the policy sees and how it answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    head: HeadConfig = HeadConfig()
    head_from_base: bool = True
    camera: str = "primary"
    more_cameras: tuple[str, ...] = Field(
        default=(), description="further cameras it sees where a robot's data has them, else masked"
    )
    blind: bool = Field(
        default=False, description="zero all pixels, in training and when served: the control"
    )
    constants: dict[str, dict[str, tuple[float, ...]]] = Field(
        default={},
        description="robot -> action component that none of its data records -> native numbers sent instead; "
        "default: what the entries of its datasets say",
    )
    center_crop: CenterCropArea | None = Field(
        default=None,
        description="area of the middle it sees, `true` is OpenVLA's 0.9; unset: as `augmentation` crops",
    )


class TrainConfig(BaseModel):
    """How long, how large, how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    steps: int = Field(default=1000, ge=0)
    batch_size: int = Field(default=32, gt=0, description="samples in one optimizer step, over all processes")
    workers: int = Field(default=0, ge=0, description="loader processes per training process")
    log_every: int = Field(default=20, gt=0)
    accumulate: int = Field(
        default=1, gt=0, description="passes, each over an equal part, per optimizer step"
    )
    checkpointing: bool | Literal["towers"] = Field(
        default=False,
        description="keep few activations and compute the others again, of all or of the towers alone: less "
        "memory, more time",
    )
    compile: bool = Field(
        default=False, description="torch.compile of all blocks: faster steps after minutes of waiting"
    )
    cuda_graphs: bool = Field(
        default=False,
        description="replay the vision towers' kernels from a recording: a GPU waits less for Python",
    )
    activation_budget: float = Field(
        default=1.0, gt=0, le=1,
        description="with compile: share of the activations that blocks may keep; the cheapest of the others "
        "are computed again",
    )  # fmt: skip
    save_every: int = Field(default=500, gt=0, description="steps between checkpoints")
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept while it runs, beside the best")
    deterministic: bool = Field(default=False, description="same adapter bit for bit; slower on a GPU")
    patience_s: float = Field(default=1800, gt=0, description="a step waits so long for the slowest process")
    log_samples: bool = Field(default=False, description="write which episode and step every sample was")
    trackers: tuple[TrackerName, ...] = Field(
        default=("tensorboard",), description="of tensorboard, wandb, trackio; beside metrics.jsonl"
    )
    project: str = Field(default="vla_adapt", description="what wandb and trackio list the run under")
    precision: str = Field(default="fp32", pattern="^(fp32|bf16)$")
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: float = Field(
        default=0.0, ge=0, lt=1,
        description="decay of the average of all that trains, which is validated and goes into bundles",
    )  # fmt: skip
    balance: Balancing = Field(
        default="none",
        description="a robot's loss counts by its samples, as much as any other's, or in its own scale",
    )


class EvaluationConfig(BaseModel):
    """Open-loop judgement on held-out episodes when training ends."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    windows: int = Field(default=400, gt=0, description="held-out windows per robot, evenly spaced")
    drawn_episodes: int = Field(
        default=3, ge=0, description="held-out episodes per robot kept for the report"
    )
    drawn_windows: int = Field(default=48, gt=0, description="predictions over each of them, evenly spaced")


# Keys of `train` that change no sample and, but for rounding (`accumulate`, as the process count), no update.
_NO_UPDATE = {
    "workers", "log_every", "save_every", "log_samples", "accumulate", "checkpointing", "compile", "keep",
    "activation_budget", "cuda_graphs",
    "deterministic", "patience_s", "trackers", "project",
}  # fmt: skip

# A list of datasets, or a mapping when there is more to say: a named mixture, balance, order.
Mixing = Annotated[
    Annotated[list[Source], Field(min_length=1), Tag("list")] | Annotated[MixtureSpec, Tag("mapping")],
    Discriminator(lambda given: "list" if isinstance(given, list) else "mapping"),
]


class Recipe(BaseModel):
    """One run: base, mixture, policy, adaptation, training. See `recipes/*.yaml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    title: str = ""
    base: str = Field(
        default="tiny", description="'tiny' (shipped), 'tiny-random', or an OpenVLA checkpoint folder"
    )
    output: str
    seed: int = 0
    mixture: Mixing
    policy: PolicyConfig = PolicyConfig()
    augmentation: AugmentationConfig = AugmentationConfig(enabled=False)
    adaptation: Method = Lora()
    warm_start: dict[str, str] = Field(
        default_factory=dict,
        description="robot -> folder of its bundle, from which its adapter and head start",
    )
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    invariance: InvarianceConfig = InvarianceConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    card: CardConfig = CardConfig()

    @staticmethod
    def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
        """Read a recipe file (or the name of a built-in one) and apply `a.b=c` overrides.

        Raises:
            ValueError: no such file, an unknown key (the near one is suggested) or a value of the wrong kind.
        """
        file = Path(path)
        if not file.is_file():
            built_in = recipes_dir() / f"{path}.yaml"
            if not built_in.is_file():
                known = Recipe.available()
                raise ValueError(
                    f"no recipe '{path}': no file and no built-in name; {did_you_mean(str(path), known)}"
                )
            file = built_in
        tree = parse_yaml(file.read_text(), str(file))
        for override in overrides or []:
            _apply(tree, override)
        return validate_model(Recipe, tree, str(file))

    @staticmethod
    def available() -> list[str]:
        """Names of the built-in recipes."""
        return sorted(file.stem for file in recipes_dir().glob("*.yaml"))

    @property
    def mixture_spec(self) -> MixtureSpec:
        """The mixture in its long form."""
        return MixtureSpec(sources=self.mixture) if isinstance(self.mixture, list) else self.mixture

    @property
    def observation(self) -> ObservationConfig:
        """What its policies look at, when judged and served."""
        policy, crop = self.policy, self.policy.center_crop
        area = self.augmentation.center_crop if crop is None else crop
        return ObservationConfig(
            camera=policy.camera, more_cameras=policy.more_cameras, blind=policy.blind, center_crop=area
        )

    def training_text(self) -> str:
        """`to_text` without what changes no sample and no update: a run may go on when it is equal."""
        cache = {"cache", "cache_dir"}
        drawn = {"drawn_episodes", "drawn_windows"}
        unread = {
            "title": True, "policy": {"constants"}, "adaptation": cache, "train": _NO_UPDATE, "card": True,
            "evaluation": drawn,
        }  # fmt: skip
        return yaml.safe_dump(self.model_dump(mode="json", exclude=unread), sort_keys=False)

    def to_text(self) -> str:
        """The resolved recipe as YAML, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _apply(tree: Any, override: str) -> None:
    """Set one `a.b=c` (list items by number: `mixture.0.path=...`) in a parsed recipe."""
    key, separator, text = override.partition("=")
    if not separator:
        raise ValueError(f"--set wants a.b=value, got '{override}'")
    *parents, leaf = key.split(".")
    node = tree
    for part in parents:
        if isinstance(node, list):
            node = _item(node, part, override)
        else:
            node = node.setdefault(part, {})
    value = yaml.safe_load(text)
    if isinstance(node, list):
        _item(node, leaf, override)
        node[int(leaf)] = value
    elif isinstance(node, dict):
        node[leaf] = value
    else:
        raise ValueError(f"--set {override}: '{'.'.join(parents)}' is a value, it has no '{leaf}' inside")


def _item(items: list[Any], part: str, override: str) -> Any:
    if not part.isdigit() or int(part) >= len(items):
        raise ValueError(f"--set {override}: '{part}' is no item of a list of {len(items)}; count from 0")
    return items[int(part)]
