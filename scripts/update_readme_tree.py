"""Bring the tree in README.md up to date: keeps the lines that are there, adds new files, drops gone ones.

What a new file is for comes from its docstring or first comment.
"""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- tree -->\s*```\n)(.*?)(```)", re.S)
# Folders of many files of one kind get one line for all.
COLLECTIONS = {
    "vla_adapt/episodes/catalogue": "one dataset of Open X-Embodiment each: how its fields map onto a robot",
    "recipes/mixtures": "named, weighted sets of catalogued datasets",
    "embodiments": "one robot each: components, units, frames, cameras, control rate",
}
COLUMN = 38


def main() -> None:
    readme = ROOT / "README.md"
    text = readme.read_text()
    found = BLOCK.search(text)
    assert found, "README.md has no tree"
    known = read_tree(found[2])
    wanted = {name: known.get(name) or about(name) for name in files()}
    tree = write_tree(wanted, known)
    readme.write_text(text[: found.start(2)] + tree + text[found.end(2) :])
    new = sorted(set(wanted) - set(known))
    print(f"{len(wanted)} lines, new: {', '.join(new) or 'none'}")


def files() -> list[str]:
    """Tracked and new files that the tree lists, collections as one name."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    names = set()
    for name in listed:
        path = ROOT / name
        if not name or name.startswith(".") or not path.is_file():
            continue
        if str(Path(name).parent) in COLLECTIONS and name.endswith(".yaml"):
            names.add(f"{Path(name).parent}/*.yaml")
        elif path.name == "__init__.py" and not path.read_text().strip():
            continue
        elif name.endswith((".py", ".yaml")) or name.startswith("scripts/"):
            names.add(name)
    return sorted(names)


def about(name: str) -> str:
    """The one line that says what a file is for."""
    if name.endswith("/*.yaml"):
        return COLLECTIONS[str(Path(name).parent)]
    text = (ROOT / name).read_text()
    if name.endswith(".py"):
        docstring = ast.get_docstring(ast.parse(text)) or ""
        return docstring.split("\n")[0].rstrip(".")
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")]
    return comments[0].rstrip(".") if comments else ""


def read_tree(tree: str) -> dict[str, str]:
    """File or folder ("a/b/") -> its line."""
    lines, folders = {}, []
    for line in tree.splitlines():
        entry, _, what = line.partition("#")
        if entry.strip():
            depth = (len(entry) - len(entry.lstrip())) // 4
            folders[depth:] = [entry.strip().rstrip("/")]
            lines["/".join(folders) + ("/" if entry.strip().endswith("/") else "")] = what.strip()
    return lines


def write_tree(wanted: dict[str, str], known: dict[str, str]) -> str:
    """Folders in the order they had, new ones last; inside, folders after files."""
    order = {name: i for i, name in enumerate(known)}
    tops = sorted({name.split("/")[0] for name in wanted}, key=lambda top: order.get(f"{top}/", 1e9))
    return "".join(line for top in tops for line in _folder(top, wanted, known, 0))


def _folder(folder: str, wanted: dict[str, str], known: dict[str, str], depth: int) -> list[str]:
    lines = [_line(Path(folder).name + "/", known.get(f"{folder}/", ""), depth)]
    inside = [name for name in wanted if name.startswith(f"{folder}/")]
    for name in inside:
        if "/" not in name[len(folder) + 1 :]:
            lines.append(_line(Path(name).name, wanted[name], depth + 1))
    for child in sorted({name[len(folder) + 1 :].split("/")[0] for name in inside}):
        if any(name.startswith(f"{folder}/{child}/") for name in inside):
            lines += _folder(f"{folder}/{child}", wanted, known, depth + 1)
    return lines


def _line(name: str, what: str, depth: int) -> str:
    return f"{'    ' * depth + name:{COLUMN - 1}s} # {what}\n"


if __name__ == "__main__":
    main()
