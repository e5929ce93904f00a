"""Fixtures: base folders, saved adapters, bundles, and the original's module tree for PEFT to judge by."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from vla_adapt.actions.normalize import Statistics
from vla_adapt.actions.unify import ActionUnifier
from vla_adapt.adaptation.bundle import Bundle, Golden
from vla_adapt.adaptation.import_original import golden_image
from vla_adapt.adaptation.robot_policy import ObservationConfig
from vla_adapt.embodiment import Embodiment
from vla_adapt.policy.checkpoint import Checkpoint
from vla_adapt.policy.heads import HeadConfig, make_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.policy.tiny_tokenizer import EMPTY, build_tiny_tokenizer, save_tiny_tokenizer

# What "all-linear" becomes on the original: base names of its linear layers ("proj" also hits convolutions).
ALL_LINEAR = (
    "qkv", "proj", "fc1", "fc2", "fc3", "q", "kv", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
    "up_proj", "down_proj", "lm_head",
)  # fmt: skip

# Of the parity checkpoint: one dataset with a gripper mask, one without any mask.
NORM_STATS = {
    "ds_a": {"action": {
        "q01": [-0.5, -0.4, -0.3, -0.2, -0.15, -0.1, 0.0], "q99": [0.45, 0.55, 0.35, 0.25, 0.2, 0.3, 1.0],
        "mask": [True] * 6 + [False],
        "mean": [0.0] * 7, "std": [1.0] * 7, "max": [1.0] * 7, "min": [-1.0] * 7,
    }},
    "ds_b": {"action": {
        "q01": [-1.5, -2.0, 0.1, -0.02, -0.7, -3.1, -0.9], "q99": [1.5, 2.5, 0.9, 0.03, 0.8, 3.2, 0.95],
    }},
}  # fmt: skip


def write_base(folder: Path, like: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A checkpoint folder like `like` with other weights, `NORM_STATS` and the tiny tokenizer."""
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((like / "config.json").read_text())
    config["norm_stats"] = NORM_STATS
    config["empty_token_id"] = build_tiny_tokenizer().token_to_id(EMPTY)
    (folder / "config.json").write_text(json.dumps(config))
    save_tiny_tokenizer(folder)
    return folder


class OriginalTree(nn.Module):
    """The root, with what PEFT asks a transformers model for."""

    def get_input_embeddings(self) -> nn.Module:
        return self.get_submodule("language_model.model.embed_tokens")

    def get_output_embeddings(self) -> nn.Module:
        return self.get_submodule("language_model.lm_head")


def original_tree(base: Path) -> OriginalTree:
    """The original's modules with a checkpoint's weights: linear, convolution, or bare parameters."""
    checkpoint = Checkpoint(base)
    root = OriginalTree()
    for name, shape in checkpoint.shapes.items():
        path, _, leaf = name.rpartition(".")
        parent, above, word = root, root, ""
        for word in path.split("."):
            if word not in dict(parent.named_children()):
                parent.add_module(word, nn.Module())
            above, parent = parent, parent.get_submodule(word)
        if leaf == "weight" and len(shape) in (2, 4) and "embed_tokens" not in name:
            bias = f"{path}.bias" in checkpoint.shapes
            linear = len(shape) == 2
            layer = nn.Linear(*shape[::-1], bias) if linear else nn.Conv2d(3, shape[0], shape[2], bias=bias)
            setattr(above, word, layer)
    for name in checkpoint.tensors:
        path, _, leaf = name.rpartition(".")
        value = nn.Parameter(checkpoint.read(name).clone(), requires_grad=False)
        setattr(root.get_submodule(path), leaf, value)
    return root


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The original's tensors after PEFT itself merged a saved adapter into them."""
    model = PeftModel.from_pretrained(original_tree(base), str(adapter))
    return model.merge_and_unload().state_dict()


def save_original_adapter(base: Path, folder: Path, seed: int = 0, **changes: object) -> Path:
    """An adapter as `finetune.py` saves it, with random instead of trained B."""
    torch.manual_seed(seed)
    fields: dict = {
        "r": 32, "lora_alpha": 16, "lora_dropout": 0.0, "init_lora_weights": "gaussian",
        "target_modules": list(ALL_LINEAR),
    }  # fmt: skip
    model = get_peft_model(original_tree(base), LoraConfig(**fields | changes))
    randomize(model, 0.02)
    model.save_pretrained(str(folder))
    return folder


def randomize(model: nn.Module, std: float) -> None:
    """Random B; that of `lm_head` small, to leave the choice among action tokens to the base."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=std * (0.01 if "lm_head" in name else 1))


@pytest.fixture(scope="session")
def original_stack() -> SimpleNamespace:
    """The functions above: `.write_base`, `.tree`, `.merged`, `.save_adapter`."""
    return SimpleNamespace(
        write_base=write_base, tree=original_tree, merged=merged_by_peft, save_adapter=save_original_adapter
    )


@pytest.fixture(scope="session")
def original_base(
    random_base: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """The parity checkpoint where it is there, else the tiny one; with a tokenizer and `NORM_STATS`.

    Its `lm_head` prefers action tokens, as trained ones do: a random one also picks ids that are no actions,
    which the original folds and our token head never considers.
    """
    try:
        like = request.getfixturevalue("shared_dir") / "openvla_parity"
    except pytest.skip.Exception:
        like = random_base
    source = Checkpoint(like)
    tensors = {name: source.read(name).clone() for name in source.tensors}
    head = tensors["language_model.lm_head.weight"]
    head[: len(head) - 64 - 256] *= 0.01
    head[-64:] *= 0.01
    if like == random_base:  # attention over weights this small hardly sees what it is asked
        for name, tensor in tensors.items():
            if ".layers." in name and tensor.ndim == 2:
                tensor *= 6
    return write_base(tmp_path_factory.mktemp("original") / "base", like, tensors)


@pytest.fixture(scope="session")
def saved_adapter(original_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """r=32, alpha=16, all-linear, on `original_base`, with its `ds_a` statistics beside it."""
    folder = save_original_adapter(original_base, tmp_path_factory.mktemp("adapter") / "vla+ds_a")
    (folder / "dataset_statistics.json").write_text(json.dumps({"ds_a": NORM_STATS["ds_a"]}))
    return folder


@pytest.fixture
def adapter_copy(saved_adapter: Path, tmp_path: Path) -> Path:
    """A copy of `saved_adapter` that a test may damage."""
    return Path(shutil.copytree(saved_adapter, tmp_path / "adapter"))


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_bundle(base, robot, head, std, **lora)`: a bundle with a random adapter and its golden pair."""

    def make(
        base: Path,
        robot: str = "franka_panda",
        head: HeadConfig = HeadConfig(kind="tokens", horizon=1, proprio=False),
        std: float = 0.05,
        **lora: object,
    ) -> Path:
        torch.manual_seed(0)
        fields: dict = {"r": 4, "lora_alpha": 8, "target_modules": r".*\.(q_proj|k_proj|v_proj|fc1)"}
        config = LoraConfig(**fields | lora)
        model = OpenVLA.from_pretrained(base)
        adapted = get_peft_model(model, config, adapter_name=robot)
        randomize(model, std)
        tensors = get_peft_model_state_dict(adapted, adapter_name=robot)
        embodiment = Embodiment.load(robot)
        bundle = Bundle(
            embodiment=embodiment,
            action_statistics=random_statistics(embodiment, "action"),
            proprio_statistics=random_statistics(embodiment, "proprio"),
            observation=ObservationConfig(),
            base_fingerprint=model.fingerprint,
            head=make_head(head, model, seed=0),
            adapter_config=config,
            adapter={key: tensor.detach().clone() for key, tensor in tensors.items()},
            card="---\nlibrary_name: peft\ntags: [vla_adapt, openvla]\n---\n\n# A card\n",
        )
        policy = bundle.attach(OpenVLA.from_pretrained(base))
        golden = Golden(
            golden_image(), np.full(embodiment.proprio_dim, 0.1), "lift the cube", np.zeros((1, 1))
        )
        golden = Golden(
            golden.image, golden.state, golden.prompt, policy.act(golden.observation("primary")), 1e-3
        )
        folder = tmp_path_factory.mktemp("made") / robot
        bundle.with_golden(golden).save(folder)
        return folder

    return make


def random_statistics(embodiment: Embodiment, kind: str) -> Statistics:
    """Statistics of random numbers in every slot the robot has."""
    values = np.random.default_rng(5).normal(0.1, 0.5, (200, 32))
    return Statistics.from_samples(values, ActionUnifier(embodiment, kind=kind).mask)


@pytest.fixture(scope="session")
def tiny_bundle(make_bundle: Callable[..., Path], random_base: Path) -> Path:
    """Franka Panda on the untrained tiny base: r=4 on q, k, v and fc1; a parallel head with state."""
    return make_bundle(random_base, head=HeadConfig(kind="parallel", horizon=4, proprio=True))


@pytest.fixture
def same_tensors() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], float]:
    """`same_tensors(got, wanted)`: largest difference, after the names were found equal."""

    def compare(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
        assert got.keys() == wanted.keys()
        return max(float((got[name].float() - wanted[name].float()).abs().max()) for name in wanted)

    return compare
