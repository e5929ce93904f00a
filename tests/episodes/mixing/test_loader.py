"""The DataLoader: same global order on any ranks, workers and restarts."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla_adapt.episodes import open_dataset
from vla_adapt.episodes.mixing.loader import HELD_BATCHES, make_loader
from vla_adapt.episodes.mixing.mixture import Mixture
from vla_adapt.episodes.rlds.rlds_store import RldsStore
from vla_adapt.episodes.windows import Window


@pytest.fixture
def mixture(written: Path) -> Mixture:
    return Mixture([(open_dataset(written), 2.0), (open_dataset(written, split="val"), 1.0)], 3, horizon=4)


def ids(windows: list[Window]) -> list[tuple[Any, ...]]:
    return [tuple(window["ids"].values()) for window in windows]


def test_union_over_ranks_does_not_depend_on_their_number(mixture: Mixture) -> None:
    whole = [ids(batch) for batch in make_loader(mixture, 12, steps=6)]
    assert [one[-1] for batch in whole for one in batch] == list(range(72))
    for world in (2, 3, 4):
        shares = [
            [ids(batch) for batch in make_loader(mixture, 12, rank, world, steps=6)] for rank in range(world)
        ]
        assert all(len(batch) == 12 // world for share in shares for batch in share)
        joined = [[one for share in shares for one in share[step]] for step in range(6)]
        assert joined == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_arrays_stay_arrays(mixture: Mixture, workers: int) -> None:
    window = next(iter(make_loader(mixture, 4, steps=1, num_workers=workers)))[0]
    assert type(window["action"]) is type(window["images"]["primary"]) is np.ndarray


def test_resume_continues(mixture: Mixture) -> None:
    whole = [ids(batch) for batch in make_loader(mixture, 8, 1, 2, steps=10)]
    resumed = [ids(batch) for batch in make_loader(mixture, 8, 1, 2, start_step=6, steps=4)]
    assert resumed == whole[6:]


@pytest.mark.parametrize("workers", [0, 2])
def test_state_is_where_the_consumer_is(mixture: Mixture, workers: int) -> None:
    """Also when workers have read ahead, and for other ranks and workers than those that saved it."""
    whole = [ids(batch) for batch in make_loader(mixture, 8, steps=10)]
    loader = make_loader(
        mixture, 8, steps=10, num_workers=workers, **({"prefetch_factor": 4} if workers else {})
    )
    assert loader.state_dict()["sample"] == 0
    for step, batch in enumerate(loader):
        assert ids(batch) == whole[step]
        assert loader.state_dict()["sample"] == 8 * (step + 1)
        if step == 3:
            break
    state = loader.state_dict()
    for world in (1, 2):
        shares = []
        for rank in range(world):
            resumed = make_loader(mixture, 8, rank, world, steps=10)
            resumed.load_state_dict(state)
            assert len(resumed) == 6
            shares.append([ids(batch) for batch in resumed])
        assert [[one for share in shares for one in share[step]] for step in range(6)] == whole[4:]
        assert resumed.state_dict()["sample"] == 80


def test_state_of_an_endless_loader_and_of_other_batches(mixture: Mixture) -> None:
    state = {"sample": 24, "mixture": mixture.fingerprint()}
    endless = make_loader(mixture, 12)
    endless.load_state_dict(state)
    assert [one[-1] for one in ids(next(iter(endless)))] == list(range(24, 36))
    with pytest.raises(ValueError, match="state at sample 24 is no whole number of batches of 9"):
        make_loader(mixture, 9).load_state_dict(state)
    other = Mixture([(dataset, 1.0) for dataset in mixture.datasets], 3, horizon=4)
    with pytest.raises(ValueError, match="draws other samples than the one its state was saved from"):
        make_loader(other, 12).load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_anything(mixture: Mixture, workers: int) -> None:
    plain = list(make_loader(mixture, 6, steps=8, collate=stack))
    loaded = list(make_loader(mixture, 6, steps=8, num_workers=workers, collate=stack))
    assert len(loaded) == 8
    for a, b in zip(plain, loaded, strict=True):
        assert a["ids"] == b["ids"]
        for key in ("image", "action", "proprio"):
            np.testing.assert_array_equal(a[key], b[key])


def stack(windows: list[Window]) -> dict[str, Any]:
    return {
        "ids": ids(windows),
        "image": np.stack([window["images"]["primary"] for window in windows]),
        "action": np.stack([window["action"] for window in windows]),
        "proprio": np.stack([window["proprio"] for window in windows]),
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_memory_is_used_again_once_it_is_let_go(mixture: Mixture, workers: int) -> None:
    """Frames of all steps lie at few places; a frame that is kept stays as it was."""
    places, kept = set(), None
    for step, batch in enumerate(make_loader(mixture, 6, steps=20, num_workers=workers, collate=frames)):
        places.add(batch[0].data_ptr())
        if step == 2:
            kept = batch[3]
    assert len(places) <= HELD_BATCHES + 2 * workers
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), mixture.window(6 * 2 + 3)["images"]["primary"])


@pytest.mark.parametrize("workers", [0, 1])
def test_all_batches_can_be_kept(mixture: Mixture, workers: int) -> None:
    """Far more than there are blocks of memory for."""
    batches = list(make_loader(mixture, 4, steps=15, num_workers=workers, collate=frames))
    for step, batch in enumerate(batches):
        for row, frame in enumerate(batch):
            wanted = mixture.window(4 * step + row)["images"]["primary"]
            np.testing.assert_array_equal(frame.numpy(), wanted)


def frames(windows: list[Window]) -> list[torch.Tensor]:
    return [torch.from_numpy(window["images"]["primary"]) for window in windows]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"persistent_workers": True}, {"prefetch_factor": 1}])
def test_passes_that_are_given_up(mixture: Mixture, options: dict[str, Any]) -> None:
    loader = make_loader(mixture, 4, steps=8, num_workers=2, collate=frames, **options)
    for stop in (1, 3, 7):
        for step, batch in enumerate(loader):
            np.testing.assert_array_equal(batch[1], mixture.window(4 * step + 1)["images"]["primary"])
            if step == stop:
                break


@pytest.mark.slow
def test_spawned_workers_work(mixture: Mixture) -> None:
    loader = make_loader(mixture, 6, steps=2, num_workers=1, multiprocessing_context="spawn")
    assert [ids(batch) for batch in loader] == [ids(batch) for batch in make_loader(mixture, 6, steps=2)]


def test_endless_and_length(mixture: Mixture) -> None:
    assert len(make_loader(mixture, 4, steps=9)) == 9
    endless = iter(make_loader(mixture, 4))
    for _ in range(20):
        next(endless)


def test_refusals(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="global batch 10 does not divide among 4 processes"):
        make_loader(mixture, 10, 0, 4)
    with pytest.raises(ValueError, match=r"rank 2 of 2 processes: wanted 0\.\.1"):
        make_loader(mixture, 10, 2, 2)


def test_a_stand_in_met_by_a_worker_is_told_on_standard_error(
    written: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the process that meets it: its list stays there, its warning does not."""
    # As Python shows warnings where pytest does not gather them.
    monkeypatch.setattr(warnings, "showwarning", lambda text, *_: os.write(2, f"{text}\n".encode()))
    store = open_dataset(written).store
    assert isinstance(store, RldsStore)
    data = store.encoded_image("observation/primary", 0, 1)
    (shard,) = (file for file in written.glob("*-train.tfrecord-*") if data in file.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(data, b"junk" + data[4:]))
    dataset = open_dataset(written, on_error="skip", verify_crc=False)
    mixture = Mixture([(dataset, 1.0)], 0, 2)
    for _ in make_loader(mixture, 6, steps=mixture.steps[0] // 6, num_workers=1):
        pass
    assert dataset.skipped == []
    told = capfd.readouterr().err
    assert told.count("written: episode train/0 step 1 camera 'primary'") == 1
    assert "the image of step 0 stands in" in told
