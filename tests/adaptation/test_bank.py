"""The bank: several robots on one base, each answering as if it were alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import interpn

from vla_adapt.adaptation.bank import Bank
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.robot_policy import ObservationConfig
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.serving.service import PolicyService


def observation(bundle: Bundle) -> dict:
    assert bundle.golden is not None
    return bundle.golden.observation(bundle.observation.camera)


def test_robots_do_not_disturb_each_other(finished_run: Path, random_base: Path):
    bundles = {name: Bundle.load(finished_run / "bundles" / name) for name in ("ur5e", "bimanual_panda")}
    bank = Bank.open(OpenVLA.from_pretrained(random_base), finished_run / "bundles")
    assert set(bank.robots()) == set(bundles)
    for name in ("ur5e", "bimanual_panda", "ur5e"):
        alone = bundles[name].attach(OpenVLA.from_pretrained(random_base)).act(observation(bundles[name]))
        together, timing = bank.act(name, observation(bundles[name]))
        assert together.shape == (4, bundles[name].embodiment.action_dim)
        assert np.allclose(alone, together, atol=1e-6)
        assert timing["policy_ms"] > 0


def test_robots_do_not_disturb_each_other_in_bfloat16(finished_run: Path, random_base: Path):
    """Swapped to and fro on one base, each gives what it gives alone; clients read what it computes in."""
    base = OpenVLA.from_pretrained(random_base, torch.bfloat16)
    bank = Bank.open(base, finished_run / "bundles")
    for name in ("ur5e", "bimanual_panda", "ur5e"):
        bundle = Bundle.load(finished_run / "bundles" / name)
        alone = bundle.attach(OpenVLA.from_pretrained(random_base, torch.bfloat16)).act(observation(bundle))
        together, _ = bank.act(name, observation(bundle))
        assert together.dtype == np.float32
        assert np.array_equal(alone, together)
        assert bank.robots()[name]["base_dtype"] == "bfloat16"


def test_clients_are_told_the_rate_of_the_training_data(finished_run: Path, random_base: Path):
    """Of a bundle that does not know it, the robot's."""
    base = OpenVLA.from_pretrained(random_base)
    for trained, told in ((5.0, 5.0), (None, 20.0)):
        bundle = replace(Bundle.load(finished_run / "bundles" / "ur5e"), rate_hz=trained)
        (card,) = Bank(base, [bundle]).robots().values()
        assert (card["rate_hz"], card["trained_rate_hz"]) == (told, trained)


def test_bad_observations_are_named(finished_run: Path, random_base: Path):
    bank = Bank.open(OpenVLA.from_pretrained(random_base), finished_run / "bundles")
    good = observation(Bundle.load(finished_run / "bundles" / "ur5e"))
    with pytest.raises(ValueError, match=r"no robot 'ur5'.*; did you mean 'ur5e'"):
        bank.act("ur5", good)
    with pytest.raises(ValueError, match="lacks camera 'primary'; cameras there: wrist"):
        bank.act("ur5e", good | {"images": {"wrist": good["images"]["primary"]}})
    with pytest.raises(ValueError, match="no 'state'"):
        bank.act("ur5e", {key: value for key, value in good.items() if key != "state"})
    with pytest.raises(ValueError, match="8"):
        bank.act("ur5e", good | {"state": good["state"][:5]})
    with pytest.raises(ValueError, match=r"(?i)nan"):
        bank.act("ur5e", good | {"state": np.full_like(good["state"], np.nan)})


def test_two_bundles_of_one_robot_are_refused(finished_run: Path, random_base: Path):
    bundle = Bundle.load(finished_run / "bundles" / "ur5e")
    with pytest.raises(ValueError, match="two bundles for robot 'ur5e'"):
        Bank(OpenVLA.from_pretrained(random_base), [bundle, bundle])


def test_a_served_observation_is_center_cropped(finished_run: Path, random_base: Path):
    """Through the server's road: a cropping bundle answers what a plain one answers to the cropped image."""
    bundle = Bundle.load(finished_run / "bundles" / "ur5e")
    base = OpenVLA.from_pretrained(random_base)
    plain = Bank(base, [bundle])
    cropping = replace(bundle, observation=ObservationConfig(center_crop=0.81))
    side = base.config.image_sizes[0]
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    given = {**observation(bundle), "images": {"primary": image}}
    # The middle 0.9 of both sides, corner pixels onto corner pixels, converted as TensorFlow does.
    at = np.linspace(0.05, 0.95, side) * (side - 1)
    both = interpn((np.arange(side),) * 2, image / 255, np.stack(np.meshgrid(at, at, indexing="ij"), axis=-1))
    cropped = {**given, "images": {"primary": np.floor(both * 255.5).astype(np.uint8)}}

    def ask(bank: Bank, request: dict) -> np.ndarray:
        service = PolicyService(bank)
        try:
            return asyncio.run(service.answer(lambda: ("ur5e", request)))["actions"]
        finally:
            service.close()

    got = ask(Bank(OpenVLA.from_pretrained(random_base), [cropping], verify=False), given)
    np.testing.assert_allclose(got, ask(plain, cropped), atol=1e-5)
    assert np.abs(got - ask(plain, given)).max() > 1e-3
