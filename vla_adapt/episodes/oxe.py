"""Known public datasets: Open X-Embodiment name -> how it maps onto an embodiment; one YAML file each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vla_adapt.episodes.mapping.entry import DatasetEntry
from vla_adapt.suggest import did_you_mean, parse_yaml, validate_model

# In a YAML file: take everything not said here from the catalogued dataset of this name.
LIKE = "like"


class Catalogue(Mapping[str, DatasetEntry]):
    """Entries of a folder of `<dataset>.yaml` files, each read when it is first asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._entries: dict[str, DatasetEntry] = {}

    def read(self, path: Path) -> DatasetEntry:
        """The entry in a YAML file, which may be `like` one of this catalogue.

        Raises:
            ValueError: invalid content; one line naming the file and the key.
        """
        tree = parse_yaml(path.read_text(encoding="utf-8"), str(path))
        name = tree.pop(LIKE, None)
        if name is None:
            return validate_model(DatasetEntry, tree, str(path))
        if name not in self:
            raise ValueError(f"{path}: {LIKE}: no catalogue entry '{name}'; {did_you_mean(str(name), self)}")
        inherited: dict[str, Any] = self[name].model_dump(exclude_unset=True)
        return validate_model(DatasetEntry, inherited | tree, str(path))

    def __getitem__(self, name: str) -> DatasetEntry:
        if name not in self._entries:
            if name not in self:
                raise KeyError(name)
            self._entries[name] = self.read(self._folder / f"{name}.yaml")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.yaml"))


CATALOGUE = Catalogue(Path(__file__).parent / "catalogue")


def find_entry(name_or_path: str | Path) -> DatasetEntry:
    """A catalogued entry by the dataset's name, or any by the path of its YAML file.

    Raises:
        ValueError: unknown name (with the near one), missing file or invalid content.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise ValueError(f"no entry file {path}; give a YAML file or a name of the catalogue")
        return CATALOGUE.read(path)
    if text not in CATALOGUE:
        raise ValueError(f"no catalogue entry '{text}'; {did_you_mean(text, CATALOGUE)}")
    return CATALOGUE[text]
