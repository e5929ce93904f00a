"""The rules of the house that a program can check: imports, README tree, file names, recipes, robots."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from vla_adapt.embodiment import Embodiment
from vla_adapt.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vla_adapt"

# A package may import from itself and from packages of a lower number; equal numbers are strangers.
LAYERS = {
    "resources": 0, "suggest": 1, "progress_bar": 1, "types": 1, "embodiment": 2, "actions": 3,
    "randomization": 3, "invariance": 3,
    "episodes": 4, "policy": 4, "adaptation": 5, "sim": 5, "serving": 5, "evaluation": 6,
    "training": 7, "recipe": 7, "cli_data": 8, "cli_adapters": 9, "cli_train": 9, "cli": 10,
}  # fmt: skip
# Beyond the order: what may not be imported although it lies lower, and the pair that may although level.
FORBIDDEN = {"serving": {"episodes"}, "sim": {"policy"}}
LEVEL_FRIENDS = {("recipe", "training"), ("training", "recipe")}
LAZY = {
    "tensorflow",
    "tensorflow_datasets",
    "mujoco",
    "robosuite",
    "mink",
    "ray",
    "matplotlib",
    "bitsandbytes",
    "av",
}
# Readers with heavy libraries of their own, which one module may import when a dataset needs them.
LAZY_READERS: dict[str, tuple[str, ...]] = {
    "opening.py": ("vla_adapt.episodes.hdf5.hdf5_store", "vla_adapt.episodes.lerobot.lerobot_store")
}


def modules() -> list[Path]:
    return sorted(
        file for file in PACKAGE.rglob("*.py") if "resources/" not in str(file.relative_to(PACKAGE))
    )


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part_of(name: str) -> str:
    return name.split(".")[1]


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path):
    part = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if part == "__init__":
        return
    tree = ast.parse(file.read_text())
    for name in imported(tree):
        if not name.startswith("vla_adapt.") or part_of(name) == part:
            continue
        target = part_of(name)
        friends = (part, target) in LEVEL_FRIENDS
        assert LAYERS[target] < LAYERS[part] or friends, (
            f"{part} imports {name}, which lies above or beside it"
        )
        assert target not in FORBIDDEN.get(part, set()), f"{part} must not import {name}"


def test_no_import_cycles():
    known = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in modules()
    }
    graph = {
        name: {
            target for target in imported(ast.parse(file.read_text())) if target in known and target != name
        }
        for name, file in known.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for target in graph[name]:
                if not name.startswith(target + "."):  # a package's __init__ may list its own modules
                    visit(target, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("file", modules(), ids=lambda file: str(file.relative_to(ROOT)))
def test_only_heavy_optional_libraries_are_imported_in_functions(file: Path):
    if file.name in ("cli.py", "cli_adapters.py", "cli_data.py", "cli_train.py"):
        return
    tree = ast.parse(file.read_text())
    for function in (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ):
        for name in imported(function):
            allowed = name.split(".")[0] in LAZY or name.startswith(LAZY_READERS.get(file.name, ()))
            assert allowed, f"{file.name}: {function.name} imports {name} inside"


def test_all_progress_bars_are_the_one():
    found = {file.name for file in modules() if "rich.progress" in imported(ast.parse(file.read_text()))}
    assert found == {"progress_bar.py"}


def test_file_names_are_unique_and_say_something():
    names = [file.name for file in modules() if file.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))
    assert not {"utils.py", "common.py", "helpers.py", "base.py", "misc.py"} & set(names)


def test_every_module_says_what_it_is_for():
    for file in modules():
        text = file.read_text().strip()
        assert not text or ast.get_docstring(ast.parse(text)), f"{file} has no docstring"


def test_readme_tree_is_true():
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"<!-- tree -->\s*```\n(.*?)```", readme, re.S)
    assert block, "README.md has no tree between '<!-- tree -->' and ```"
    listed: set[str] = set()
    folders: list[str] = []
    for line in block[1].splitlines():
        entry, _, what = line.partition("#")
        if not entry.strip():
            continue
        depth = (len(entry) - len(entry.lstrip())) // 4
        name = entry.strip()
        assert what.strip(), f"README tree: '{name}' has no line of explanation"
        folders[depth:] = [name.rstrip("/")]
        if not name.endswith("/"):
            listed.add("/".join(folders))
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    wanted = {
        name for name in tracked
        if name.endswith((".py", ".yaml")) or (name.startswith("scripts/") and name)
        if Path(name).name != "__init__.py" or (ROOT / name).read_text().strip()
        if not name.startswith(".")
    }  # fmt: skip
    for pattern in {name for name in listed if name.endswith("/*.yaml")}:  # many of a kind: one line for all
        assert {name for name in wanted if fnmatch(name, pattern)}, f"README tree: no file fits {pattern}"
        wanted = {name for name in wanted if not fnmatch(name, pattern)}
        listed.remove(pattern)
    assert listed - wanted == set(), "listed in the README, but not there"
    assert wanted - listed == set(), "there, but not listed in the README"


@pytest.mark.parametrize("name", Embodiment.available())
def test_every_embodiment_loads(name: str):
    robot = Embodiment.load(name)
    assert robot.name == name
    assert robot.action_dim > 0
    assert Embodiment.from_text(robot.to_text()) == robot


@pytest.mark.parametrize("name", Recipe.available())
def test_every_recipe_loads(name: str):
    recipe = Recipe.load(name)
    assert recipe.name
    for source in recipe.mixture:
        if source.embodiment is not None:
            Embodiment.load(source.embodiment)


def test_the_robots_command_needs_no_torch():
    blocked = "import sys; sys.modules['torch'] = None; sys.argv = ['vla-adapt', 'robots', 'show', 'ur5e']; "
    result = subprocess.run(
        [sys.executable, "-c", blocked + "from vla_adapt.cli import main; main()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "right_gripper" in result.stdout
