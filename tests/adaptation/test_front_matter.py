"""The YAML before a card: read, written, and what huggingface_hub makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from vla_adapt.adaptation.front_matter import split_front_matter, with_front_matter


def test_a_written_card_reads_back(tmp_path: Path):
    card = with_front_matter({"license": "mit"}, ["a", "b", "a"], "# Title\n\ntext\n")
    fields, text = split_front_matter(card)
    assert fields == {
        "library_name": "peft", "pipeline_tag": "robotics", "license": "mit", "tags": ["a", "b"],
    }  # fmt: skip
    assert text.strip() == "# Title\n\ntext"
    (tmp_path / "README.md").write_text(card)
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.license == "mit"
    assert loaded.text.strip() == "# Title\n\ntext"


def test_given_fields_win():
    fields, _ = split_front_matter(with_front_matter({"library_name": "other"}, [], "x"))
    assert fields["library_name"] == "other"


def test_no_or_broken_front_matter():
    assert split_front_matter("# Title\n") == ({}, "# Title\n")
    with pytest.raises(ValueError, match=r"front matter of card\.md is not valid YAML"):
        split_front_matter("---\na: [\n---\n", "card.md")
