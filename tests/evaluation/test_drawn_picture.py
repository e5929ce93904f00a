"""An episode as a picture: time in seconds, recorded and predicted lines, chunks cut at the end."""

from __future__ import annotations

import numpy as np

from vla_adapt.evaluation.drawn_episodes import DrawnEpisode
from vla_adapt.evaluation.drawn_picture import episode_picture


def test_each_component_over_time():
    rng = np.random.default_rng(0)
    drawn = DrawnEpisode(
        "ur5e", "d", "0", "go", 10.0, tuple(f"c{number}" for number in range(5)), ("m",) * 5,
        true=rng.normal(size=(6, 5)).astype(np.float32), starts=np.array([0, 4]),
        predicted=rng.normal(size=(2, 3, 5)).astype(np.float32),
    )  # fmt: skip
    axes = [axis for axis in episode_picture(drawn).axes if axis.get_title()]
    assert [axis.get_title() for axis in axes] == list(drawn.names)
    recorded, predicted = axes[4].lines
    np.testing.assert_allclose(recorded.get_xdata(), [0, 0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_array_equal(recorded.get_ydata(), drawn.true[:, 4])
    np.testing.assert_allclose(predicted.get_xdata(), [0, 0.4])
    np.testing.assert_array_equal(predicted.get_ydata(), drawn.predicted[:, 0, 4])
    whole, cut = axes[4].collections[0].get_segments()
    assert (len(whole), len(cut)) == (3, 2)
    np.testing.assert_allclose(cut, np.column_stack([[0.4, 0.5], drawn.predicted[1, :2, 4]]))
    assert axes[1].get_xlabel() == axes[4].get_xlabel() == "time (s)"
    assert axes[0].get_xlabel() == "", "another one is below"
