"""What a plan needs to know of the data: robots, rows of a batch, text length, size; read, or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.episode_facts import first_with_steps
from vla_adapt.episodes.mixing.mixture_spec import MixtureSpec
from vla_adapt.episodes.mixing.open_mixture import OpenedMixture, open_mixture
from vla_adapt.episodes.source import EpisodeDataset
from vla_adapt.policy.batch import PolicyBatch
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.prompt import PromptTokenizer
from vla_adapt.recipe import Recipe
from vla_adapt.types import NUM_SLOTS

ASSUMED_TEXT = 32  # tokens of a prompt with an instruction of about ten words
_ASSUMED_SLOTS = 7
_READ_EPISODES = 32  # of each dataset, for the length of its instructions


@dataclass(frozen=True)
class PlanData:
    """What is known of the data.

    Attributes:
        masks: robot -> [32] slots of its action, in the order of the run.
        rows: robot of each sample of a long stretch of the mixture.
        text_tokens: of the longest prompt looked at.
        samples: of one epoch over all datasets; None: unknown.
        datasets: opened ones.
        notes: what was assumed.
    """

    masks: dict[str, Bool[np.ndarray, " 32"]]
    rows: list[str]
    text_tokens: int
    samples: int | None
    datasets: list[EpisodeDataset] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def batch_robots(self, size: int) -> list[str]:
        """Robots of the first `size` samples, sorted as the run sorts them."""
        order = list(self.masks)
        rows = [self.rows[n % len(self.rows)] for n in range(size)]
        return sorted(rows, key=order.index)


def look_at_data(recipe: Recipe, base: Path) -> PlanData:
    """Open the data of a recipe; where none of it is there, assume.

    Raises:
        ValueError: some of the data is there, and something is wrong with it.
    """
    if not any(_there(path) for path in _paths(recipe.mixture_spec)):
        return _assumed(recipe)
    opened = open_mixture(recipe.mixture_spec)
    datasets = [part.train for part in opened.parts]
    robots = {dataset.embodiment.name: dataset.embodiment for dataset in datasets}
    notes: list[str] = []
    return PlanData(
        masks={name: ActionUnifier(robot).mask for name, robot in robots.items()},
        rows=_drawn(recipe, opened),
        text_tokens=_longest_prompt(datasets, base, notes),
        samples=sum(part.steps for part in opened.parts),
        datasets=datasets,
        notes=[*opened.notes, *notes],
    )


def plan_batch(recipe: Recipe, data: PlanData, model: OpenVLA, size: int) -> PolicyBatch:
    """A batch of the sizes of a real one (the contents of its images and texts play no role)."""
    robots = data.batch_robots(size)
    slots = torch.from_numpy(np.stack([data.masks[robot] for robot in robots]))
    horizon, side = recipe.policy.head.horizon, model.config.image_sizes[0]
    cameras = 1 + len(recipe.policy.more_cameras)
    extra = {}
    key = recipe.auxiliary.key
    if recipe.auxiliary.weight and data.datasets:
        example = torch.from_numpy(np.asarray(first_with_steps(data.datasets).extra(key)[0], np.float32))
        extra = {key: example.expand(size, *example.shape)}
    return PolicyBatch(
        input_ids=torch.ones(size, data.text_tokens, dtype=torch.long),
        attention_mask=_ragged(size, data.text_tokens),
        pixel_values=torch.zeros(size, 6 * cameras, side, side),
        proprio=torch.zeros(size, NUM_SLOTS),
        proprio_mask=slots.clone(),
        slot_mask=slots,
        action=torch.zeros(size, horizon, NUM_SLOTS),
        action_mask=slots[:, None].repeat(1, horizon, 1),
        extra=extra,
        robots=robots,
    )


def _ragged(size: int, length: int) -> torch.Tensor:
    """Prompts of a batch differ in length: there is padding, which decides on the attention kernel."""
    mask = torch.ones(size, length, dtype=torch.bool)
    mask[1::2, -1] = False
    return mask


def _paths(spec: MixtureSpec) -> list[str]:
    return [source.path for source in spec.sources] + ([spec.folder] if spec.folder is not None else [])


def _there(path: str) -> bool:
    return "://" in path or Path(path).expanduser().exists()


def _assumed(recipe: Recipe) -> PlanData:
    """Robots that the recipe names, else one with the seven numbers of a single arm."""
    names = dict.fromkeys(s.embodiment for s in recipe.mixture_spec.sources if s.embodiment is not None)
    masks = {}
    for name in names:
        robot = Embodiment.load(name)
        masks[robot.name] = ActionUnifier(robot).mask
    unknown = sum(source.embodiment is None for source in recipe.mixture_spec.sources)
    for number in range(max(unknown, 0 if masks else 1)):
        masks[f"robot_{number + 1}"] = np.arange(NUM_SLOTS) < _ASSUMED_SLOTS
    note = (
        f"none of the data is here: {len(masks)} robot(s), prompts of {ASSUMED_TEXT} tokens and equal shares "
        "assumed, epochs unknown"
    )
    if recipe.auxiliary.weight:
        note += "; the helper loss is left out"
    return PlanData(masks, list(masks), ASSUMED_TEXT, None, notes=[note])


def _drawn(recipe: Recipe, opened: OpenedMixture) -> list[str]:
    mixture = opened.draw(recipe.seed, recipe.policy.head.horizon, cameras=(recipe.policy.camera,))
    numbers = range(recipe.train.batch_size)
    return [mixture.datasets[mixture.sample(number).dataset].embodiment.name for number in numbers]


def _longest_prompt(datasets: Sequence[EpisodeDataset], base: Path, notes: list[str]) -> int:
    if not (base / "tokenizer.json").is_file():
        notes.append(f"the base's tokenizer is not here: prompts of {ASSUMED_TEXT} tokens assumed")
        return ASSUMED_TEXT
    tokenizer = PromptTokenizer.from_pretrained(base)
    episodes = (d[index] for d in datasets for index in islice(range(len(d)), _READ_EPISODES))
    texts = {text for episode in episodes for text in episode.instructions}
    return max(len(tokenizer.ids(text)) for text in texts)
