"""Views of some episodes, and facts about episodes told without opening them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes import EpisodeData, MemoryDataset, open_dataset
from vla_adapt.episodes import episode_facts as facts
from vla_adapt.episodes.source import Observations
from vla_adapt.episodes.subset import EpisodeSubset


def test_a_view_of_stored_episodes(written: Path, recordings: dict[str, list[EpisodeData]]) -> None:
    whole = open_dataset(written)
    view = EpisodeSubset(EpisodeSubset(whole, [4, 1, 2]), [0, 2])
    assert len(view) == 2
    assert view.lengths.tolist() == [6, 3]
    assert (view.name, view.embodiment) == (whole.name, whole.embodiment)
    for index, original in enumerate((4, 2)):
        data = recordings["train"][original]
        np.testing.assert_array_equal(view[index].action, data.action)
        assert facts.episode_id(view, index) == whole[original].episode_id
        assert facts.instruction(view, index) == data.instruction
        assert facts.metadata(view, index)["seed"] == data.metadata["seed"]
        shown = facts.observations(view, index)
        assert (type(shown), len(shown)) == (Observations, len(data))
        assert (shown.episode_id, shown.instruction) == (whole[original].episode_id, data.instruction)
        np.testing.assert_array_equal(shown.image(2), whole[original].image(2))
        np.testing.assert_array_equal(shown.extra("wide"), data.extra["wide"])
    for outside in (2, -1):
        with pytest.raises(IndexError, match=f"episode {outside} of the 2 chosen ones"):
            view[outside]


def test_facts_of_a_dataset_that_only_has_episodes(
    robot: Embodiment, recordings: dict[str, list[EpisodeData]]
) -> None:
    dataset = MemoryDataset("memory", robot, recordings["train"])
    view = EpisodeSubset(dataset, [3])
    assert facts.episode_id(view, 0) == facts.episode_id(dataset, 3) == "3"
    assert facts.instruction(view, 0) == recordings["train"][3].instruction
    assert facts.metadata(view, 0) == recordings["train"][3].metadata
    assert facts.observations(view, 0) is dataset[3]
