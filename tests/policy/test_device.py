"""Devices that are there, and those that are not."""

from __future__ import annotations

import pytest
import torch

from vla_adapt.policy.device import usable_device


def test_devices():
    assert usable_device("cpu") == "cpu"
    assert usable_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_what_cannot_run_a_model_is_refused_in_one_line(name: str):
    with pytest.raises(ValueError, match=f"device '{name}' cannot be used here .*; wanted cpu") as caught:
        usable_device(name)
    assert "\n" not in str(caught.value)
