"""What a run's robots are sent for action components that their data omits, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from vla_adapt.adaptation.constants import Constants, check_constants, untrained_components
from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.provenance import entry_of
from vla_adapt.episodes.source import EpisodeDataset


def robot_constants(
    embodiment: Embodiment,
    trained: Bool[np.ndarray, 32],
    datasets: Sequence[EpisodeDataset],
    given: Constants,
) -> Constants:
    """Component -> native numbers for those that none of a robot's datasets records.

    Args:
        embodiment: the robot.
        trained: slots that some dataset records.
        datasets: all of the robot's.
        given: by the recipe (`policy.constants`); the datasets' entries are asked for the rest.

    Raises:
        ValueError: nobody says what to send, entries disagree, or as `check_constants`.
    """
    found = dict(given)
    for name in untrained_components(embodiment, trained):
        said = _said(datasets, name)
        if name in given or not said:
            continue
        (first, numbers), *others = said
        for other, different in others:
            if different != numbers:
                raise ValueError(
                    f"robot '{embodiment.name}': action component '{name}' is in none of its training data, "
                    f"and the entries of {first} and {other} disagree on what to send ({list(numbers)}, "
                    f"{list(different)}); say it with policy.constants"
                )
        found[name] = numbers
    check_constants(embodiment, trained, found)
    return found


def omission_notes(datasets: Sequence[EpisodeDataset], constants: Constants, given: Constants) -> list[str]:
    """A line for every action component that some dataset of a robot omits: where it is masked, what is sent.

    Args:
        datasets: all of the robot's, at least one.
        constants: as `robot_constants` found them.
        given: the recipe's.
    """
    omitted: dict[str, list[str]] = {}
    for dataset in datasets:
        for name in dataset[0].action_omits if len(dataset) else ():
            omitted.setdefault(name, []).append(dataset.name)
    notes = []
    for name, lacking in omitted.items():
        if name in constants:
            said_by = "policy.constants" if name in given else f"entry of {_said(datasets, name)[0][0]}"
            told = f"in none of its data: masked, and {list(constants[name])} is sent for it ({said_by})"
        else:
            told = f"masked where it is not recorded ({', '.join(lacking)}) and learned from the rest"
        notes.append(f"robot '{datasets[0].embodiment.name}': action component '{name}' is {told}")
    return notes


def _said(datasets: Sequence[EpisodeDataset], component: str) -> list[tuple[str, tuple[float, ...]]]:
    """(dataset, the constant numbers that its entry names for a component) where it names any."""
    entries = [(dataset.name, entry_of(dataset)) for dataset in datasets]
    return [
        (name, entry.constants[component])
        for name, entry in entries
        if entry is not None and component in entry.constants
    ]
