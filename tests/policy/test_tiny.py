"""The tiny twin: size, layout, determinism, a start from which it can learn."""

from __future__ import annotations

import json

import torch

from vla_adapt.policy.checkpoint import Checkpoint, fingerprint
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny import build_tiny_base, sincos_positions, tiny_config


def test_sizes(tiny_dir, tiny_model, tmp_path):
    assert 1.0e6 < sum(parameter.numel() for parameter in tiny_model.parameters()) < 1.3e6
    build_tiny_base(tmp_path, seed=0, dtype=torch.bfloat16)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 5e6
    assert tiny_model.num_patches == 36


def test_the_layout_is_complete_down_to_tensors_that_never_run(tiny_dir, parity):
    def kinds(directory, last: dict[str, str]) -> set[str]:
        names = set()
        for name in Checkpoint(directory).tensors:
            head, _, rest = name.partition(".blocks.")
            number, _, tail = rest.partition(".")
            names.add(
                f"{head}.blocks.{'last' if number == last.get(head) else 'other'}.{tail}" if rest else name
            )
        return names

    towers = ("vision_backbone.featurizer", "vision_backbone.fused_featurizer")
    assert kinds(tiny_dir, dict.fromkeys(towers, "2")) == kinds(parity.directory, dict.fromkeys(towers, "3"))


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_generator_alone(tiny_dir, tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_tiny_base(tmp_path / "a", seed=3)
    build_tiny_base(tmp_path / "b", seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(tmp_path / "a") == fingerprint(tiny_dir) != fingerprint(tmp_path / "b")


def test_config_names_its_towers_so_that_no_shape_is_guessed(tiny_dir):
    assert tiny_config().towers() == tiny_config().towers(Checkpoint(tiny_dir).shapes)
    raw = json.loads((tiny_dir / "config.json").read_text())
    assert raw["image_sizes"] == [84, 84]
    assert raw["text_config"]["vocab_size"] == 576


def test_without_the_explicit_field_the_shapes_say_the_same(tiny_dir, tmp_path):
    for path in tiny_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    raw = json.loads((tmp_path / "config.json").read_text())
    raw.pop("vision_towers")
    (tmp_path / "config.json").write_text(json.dumps(raw))
    image = torch.randn(1, 6, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = OpenVLA.from_pretrained(tiny_dir).project(image)
        assert torch.equal(OpenVLA.from_pretrained(tmp_path).project(image), wanted)


def test_positions_are_distinct_and_bounded():
    positions = sincos_positions(6, 64)
    assert positions.shape == (36, 64)
    assert positions.abs().max() <= 1
    distances = torch.cdist(positions, positions) + 10 * torch.eye(36)
    assert distances.min() > 0.5
    torch.testing.assert_close(distances[0, 1], distances[0, 6])


def test_image_features_vary_with_the_image_and_keep_their_scale(tiny_model):
    images = torch.randn(4, 6, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = tiny_model.project(images)
    assert 0.05 < patches.std().item() < 2
    assert (patches[0] - patches[1]).abs().mean() > 0.02
