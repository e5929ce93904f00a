"""The card of a bundle: data, ranges and errors, limits, licenses, and front matter the Hub can read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from vla_adapt.actions.normalize import Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.card import NOT_MEASURED, CardFacts, DataLine, model_card
from vla_adapt.adaptation.front_matter import split_front_matter
from vla_adapt.embodiment import Embodiment

ROBOT = Embodiment.load("ur5e")


@pytest.fixture
def facts() -> CardFacts:
    mask = ActionUnifier(ROBOT).mask
    samples = np.linspace(-0.25, 0.5, 101)[:, None].repeat(32, axis=1)
    return CardFacts(
        recipe="r", base="abc", adaptation="lora", head="parallel, horizon 8", image="`primary`",
        state="read", constants="none", steps=10, held_out="0.2 (predict-the-mean 0.4)",
        statistics=Statistics.from_samples(samples, mask), horizon=8,
        data=[
            DataLine("kitchen", 20, 900, 2, "cc-by-4.0", "https://example.org/kitchen", 20.0),
            DataLine("lab", 5, 100, 0),
        ],
        errors=[{"slot": "right_gripper", "unit": "opening", "error": 0.0625, "baseline_error": 0.3}],
        license="mit", base_model="openvla/openvla-7b", base_license="mit",
    )  # fmt: skip


def test_front_matter_is_what_the_hub_reads(facts: CardFacts, tmp_path: Path):
    (tmp_path / "README.md").write_text(model_card(ROBOT, facts))
    data = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False).data.to_dict()
    assert data["library_name"] == "peft"
    assert data["pipeline_tag"] == "robotics"
    assert (data["base_model"], data["base_model_relation"]) == ("openvla/openvla-7b", "adapter")
    assert data["license"] == "mit"
    assert data["tags"] == ["vla_adapt", "openvla", "robotics", "lora", "ur5e"]


def test_what_it_says(facts: CardFacts):
    card = model_card(ROBOT, facts)
    assert "| kitchen | 20 | 900 | 2 | 20 Hz | cc-by-4.0 | https://example.org/kitchen |" in card
    assert "| lab | 5 | 100 | 0 | not known | unknown | not said |" in card
    assert "| `right_gripper` | opening | -0.25 | -0.2425 | 0.4925 | 0.5 | 0.0625 | 0.3 |" in card
    assert "| `right_ee_position_delta.x` | m | -0.25 | -0.2425 | 0.4925 | 0.5 |  |  |" in card
    assert "`left_gripper`" not in card, "it has none"
    assert "One answer is 8 action(s), 0.4 s at 20 Hz" in card
    assert "- data: cc-by-4.0, unknown (nobody said)" in card
    assert 'PeftModel.from_pretrained(OpenVLA.from_pretrained("openvla/openvla-7b"), "DIR")' in card
    assert "Tested open loop only" in card


@pytest.mark.parametrize(
    ("rate_hz", "of_data", "told"),
    [
        (20.0, (20.0, 20.0), "| control rate | 20 Hz |"),
        (5.0, (5.0, 5.2), "| control rate | 5 Hz, that of its data (the robot declares 20 Hz) |"),
        (None, (3.0, 20.0), "| control rate | not one: its data was recorded at 3, 20 Hz (the robot"),
        (
            None,
            (None, None),
            "| control rate | 20 Hz, as the robot declares (that of its data is not known) |",
        ),
    ],
)
def test_the_rate_is_that_of_the_data(
    facts: CardFacts, rate_hz: float | None, of_data: tuple[float | None, float | None], told: str
):
    data = [DataLine("a", 1, 1, 0, rate_hz=of_data[0]), DataLine("b", 1, 1, 0, rate_hz=of_data[1])]
    card = model_card(ROBOT, replace(facts, rate_hz=rate_hz, data=data))
    assert told in card
    assert f"s at {rate_hz or 20:g} Hz; at another rate" in card


def test_what_nobody_knows_is_said(facts: CardFacts):
    bare = replace(
        facts, data="somewhere", errors=(), held_out=NOT_MEASURED, license="unknown", base_model=None,
        base_license="unknown", adapted=False,
    )  # fmt: skip
    card = model_card(ROBOT, bare)
    fields, _ = split_front_matter(card)
    assert "base_model" not in fields
    assert (fields["license"], fields["library_name"]) == ("unknown", "vla_adapt")
    assert "lora" not in fields["tags"]
    assert "Not tested at all" in card
    assert card.count("unknown (nobody said)") == 3
    assert "nothing for PEFT to load" in card


def test_the_card_of_a_real_run(finished_run: Path):
    card = Bundle.load(finished_run / "bundles" / "ur5e").card
    assert "| ur5e_fake | 3 | 21 | 1 | 20 Hz | unknown | not said |" in card
    assert "| control rate | 20 Hz |" in card
    assert "held-out error | 0." in card
    assert ModelCard.load(finished_run / "bundles" / "ur5e" / "README.md").data.license == "unknown"


def test_a_camera_that_stood_in_is_said(facts: CardFacts):
    lab = DataLine("lab", 5, 100, 0, stand_in_cameras={"primary": "wrist"})
    card = model_card(ROBOT, replace(facts, data=[facts.data[0], lab]))
    assert "lab has no camera `primary`: what it saw as `primary` are images of its camera `wrist`." in card
    assert "kitchen has no camera" not in card
