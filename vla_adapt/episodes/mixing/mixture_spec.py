"""A mixture as data: which datasets, what of them, how they are weighted and in which order they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vla_adapt.episodes.mixing.balance import Balance
from vla_adapt.episodes.mixing.episode_filter import EpisodeFilter
from vla_adapt.episodes.storage.damage import OnError
from vla_adapt.resources import recipes_dir
from vla_adapt.suggest import did_you_mean, load_yaml_model

# As OpenVLA's loader does for a dataset without a validation split (there the last 5 % of the records).
NAMED_HELD_OUT = 0.05


class SourceOptions(BaseModel):
    """What of a dataset is taken, and what is held out of it.

    In this order: `split`, `filter`, `held_out`, and of what is left the first `episodes`.

    Attributes:
        embodiment: the robot, if not the one the dataset names.
        split: where the episodes come from.
        held_out_split: judged on this split, which the filter (but not its ids) applies to as well; empty:
            nothing is held out. Default: "val", unless `held_out` is given.
        held_out: judged on this fraction of the episodes of `split`, chosen by a hash of names that copies
            and renamed folders keep (`held_out.is_held_out`).
        episodes: only the first so many.
        filter: which episodes count.
        on_error: damaged episodes: "error", or "skip" and say so; images: see `mapped.MappedDataset`.
        stand_in_cameras: camera name -> another camera, whose images are given for it where the dataset lacks
            the first ({primary: wrist}); both names then show them.
        stride: keep every n-th step; actions then cover the steps between, see `strided.StridedDataset`.
        image_scale: decode the images to train on smaller, see `opening.open_dataset`; those to judge on are
            always decoded at full size.
        verify_images: check a CRC of every image when it is read.
        verify_crc: check record CRCs when the index is built (RLDS).
        cache_dir: where to keep the index, if not beside the dataset.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    embodiment: str | None = None
    split: str = "train"
    held_out_split: str | None = None
    held_out: float | None = Field(default=None, gt=0, lt=1)
    episodes: int | None = Field(default=None, gt=0)
    filter: EpisodeFilter = EpisodeFilter()
    on_error: OnError = "error"
    stand_in_cameras: dict[str, str] = {}
    stride: int = Field(default=1, ge=1)
    image_scale: int | None = Field(default=None, ge=1)
    verify_images: bool = False
    verify_crc: bool = True
    cache_dir: str | None = None

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> SourceOptions:
        if self.held_out is not None and self.held_out_split is not None:
            raise ValueError(
                f"got held_out {self.held_out} and held_out_split '{self.held_out_split}'; give one of them"
            )
        return self

    @property
    def judged_split(self) -> str | None:
        """The split to judge on; None when there is none or a fraction of `split` is held out instead."""
        if self.held_out is not None:
            return None
        return "val" if self.held_out_split is None else self.held_out_split or None

    def over(self, defaults: SourceOptions) -> dict[str, Any]:
        """These options where they are given, else those of `defaults`; so each condition of the filters."""
        mine = self.model_dump(include=set(SourceOptions.model_fields), exclude_unset=True)
        given = defaults.model_dump(exclude_unset=True)
        if mine.keys() & {"held_out", "held_out_split"}:
            given = {key: value for key, value in given.items() if not key.startswith("held_out")}
        filters = [tree["filter"] for tree in (given, mine) if "filter" in tree]
        metadata = {key: value for tree in filters for key, value in tree.get("metadata", {}).items()}
        both = {key: value for tree in filters for key, value in tree.items()}
        return given | mine | {"filter": both | {"metadata": metadata}}


class Source(SourceOptions):
    """One dataset. `path` may use ~ and is relative to where the run is started, or a URL fsspec knows.

    Attributes:
        path: its folder or file.
        entry: a catalogued name or a YAML file that says how its fields map onto the robot; None: found by
            the dataset's own description or its name.
        weight: against the other datasets; what it means is up to the mixture's `balance`.
        episode_weights: file of episode name -> weight, see `episode_weights`; episodes of weight 0 are left
            out, of the statistics too.
    """

    path: str
    entry: str | None = None
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    episode_weights: str | None = None


class MixtureSpec(BaseModel):
    """Datasets of a named mixture, own ones, or both.

    Attributes:
        named: a mixture of `recipes/mixtures`, or a YAML file like those.
        folder: holds the named mixture's datasets as folders of their names.
        missing: a dataset that is not in `folder`: "error", or "skip" and say so.
        defaults: for the datasets of `named`, where its file does not say otherwise. Few of the public ones
            have a split to judge on: unless these say what to hold out, it is a fraction of `NAMED_HELD_OUT`.
        sources: own datasets.
        balance: see `balance.balanced_weights`. Default: the named mixture's, else "none".
        order: "shuffle": every epoch of a dataset is a random permutation of its steps. "shards": few blocks
            of neighboring episodes are read at a time, for data that does not lie on a fast local disk.
        open_blocks: with "shards", how many blocks (of about 256 steps) of a dataset are open at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    named: str | None = None
    folder: str | None = None
    missing: Literal["error", "skip"] = "error"
    defaults: SourceOptions = SourceOptions()
    sources: list[Source] = []
    balance: Balance | None = None
    order: Literal["shuffle", "shards"] = "shuffle"
    open_blocks: int = Field(default=16, ge=2)

    @model_validator(mode="after")
    def _has_datasets(self) -> MixtureSpec:
        if (self.named is None) != (self.folder is None):
            raise ValueError(
                "'named' and 'folder' belong together: a mixture's name, and where its data lies"
            )
        if self.named is None and not self.sources:
            raise ValueError("a mixture without datasets; give 'sources', or 'named' and 'folder'")
        if self.named is None and (self.defaults != SourceOptions() or self.missing != "error"):
            raise ValueError("'defaults' and 'missing' are for a named mixture; give each source its own")
        return self


class NamedLine(SourceOptions):
    """One line of a named mixture: a dataset's name, its weight, and what differs from the defaults."""

    dataset: str
    weight: float = Field(gt=0, allow_inf_nan=False)


class NamedMixture(BaseModel):
    """A file of `recipes/mixtures`: names, weights and what of each dataset is taken; no paths.

    `stand_in_cameras` are for all its datasets, as of `SourceOptions`; a recipe's `defaults` go before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    title: str
    balance: Balance
    stand_in_cameras: dict[str, str] = {}
    datasets: list[NamedLine] = Field(min_length=1)

    @staticmethod
    def load(name: str) -> NamedMixture:
        """Read a built-in one by name, or a YAML file.

        Raises:
            ValueError: there is none, or it is not well-formed.
        """
        file = Path(name).expanduser()
        if not file.is_file():
            file = mixtures_dir() / f"{name}.yaml"
        if not file.is_file():
            known = NamedMixture.available()
            raise ValueError(
                f"no mixture '{name}': no file and no built-in name; {did_you_mean(name, known)}"
            )
        return load_yaml_model(NamedMixture, file.read_text(), str(file))

    @staticmethod
    def available() -> list[str]:
        """Names of the built-in mixtures."""
        return sorted(file.stem for file in mixtures_dir().glob("*.yaml"))

    def lines(self) -> dict[str, NamedLine]:
        """Dataset name -> its line; of a dataset listed twice the first one counts, as upstream."""
        first: dict[str, NamedLine] = {}
        for line in self.datasets:
            first.setdefault(line.dataset, line)
        return first

    def weights(self) -> dict[str, float]:
        """Dataset name -> weight."""
        return {name: line.weight for name, line in self.lines().items()}


def mixtures_dir() -> Path:
    """Folder of the built-in mixtures."""
    return recipes_dir() / "mixtures"
