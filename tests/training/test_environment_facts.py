"""What a run ran on, and what changed since."""

from __future__ import annotations

import json
import platform

import torch

from vla_adapt.training.environment_facts import changed_facts, environment_facts


def test_facts_of_this_place():
    facts = environment_facts(2)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["python"] == platform.python_version()
    assert facts["processes"] == 2
    assert json.loads(json.dumps(facts)) == facts


def test_changes_are_named():
    now = environment_facts(2)
    assert changed_facts(now, now) == []
    before = {**now, "packages": {**now["packages"], "torch": "2.0.1"}, "processes": 4}
    assert changed_facts(before, now) == [f"torch 2.0.1 -> {torch.__version__}", "processes 4 -> 2"]
