"""How a stored dataset maps onto an embodiment, as data: which field is what, in which encoding and unit.

An entry comes from the dataset's own `vla_adapt.json` (our writer leaves one), from the catalogue of known
datasets, from a YAML file, or from the caller. Nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

SIDECAR = "vla_adapt.json"

ImageQuirk = Literal["bgr", "flip_vertical", "flip_horizontal", "rotate_180"]

_EULER = tuple(f"euler_{''.join(axes)}" for letters in ("xyz", "XYZ") for axes in permutations(letters))
_ENCODINGS = (
    "axis_angle",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "matrix",
    "rotation_6d",
    "rotation_6d_rows",
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _known_rotation(value: str) -> str:
    if value in _ENCODINGS or value in _EULER:
        return value
    raise ValueError(
        f"unknown rotation {value!r}; one of {', '.join(_ENCODINGS)}, or euler_ and scipy's axes: euler_xyz "
        "(fixed axes), euler_ZYX (moving axes)"
    )


StoredRotation = Annotated[str, BeforeValidator(_known_rotation)]


class Measured(_Strict):
    """Where a measured pose lies that a command is related to.

    Attributes:
        field: the stored field.
        columns: which of its numbers (flattened); default all.
        rotation: encoding of a rotation, default that of the command.
        scale: as of the command, where the unit differs; default the command's.
    """

    field: str
    columns: tuple[int, ...] | None = None
    rotation: StoredRotation | None = None
    scale: float | None = None


class Source(_Strict):
    """Where (a part of) a component comes from.

    Attributes:
        field: stored or computed field.
        columns: which numbers of one step's value, flattened, in the component's order; default all. `null`
            stands for a constant 0: the robot cannot move that way (a planar task).
        scale: stored * scale = the component's own number, one or one per number. Where `rotation` is given:
            stored * scale = radians.
        rotation: how a rotation is stored, if otherwise than in the embodiment; converted through SO(3).
            `euler_xyz` as scipy: lower case fixed axes, upper case moving axes, numbers in the order of the
            letters. `matrix`: 9 numbers row by row. `rotation_6d`: first two columns; `rotation_6d_rows`.
        measured: the stored command is an *absolute* pose; the component becomes the base-frame step from
            this measured pose to it.
        added_to: the stored numbers are *added* number by number to these measured ones (differences of
            axis-angle vectors or Euler angles); the component becomes the turn this amounts to.
        open: stored number of the fully open gripper (goes with `closed`); clipped beyond.
        closed: of the fully closed one.
        relative: stored numbers are commands "open" (towards `open`) and "close"; smaller ones than this,
            in units of `open` and `closed`, mean "keep". Made absolute over the whole episode: before the
            first command the gripper is in the opposite state of it, without any command it is open.
        binarize: make it fully open or closed, see `transforms.binarized`.
    """

    field: str
    columns: tuple[int | None, ...] | None = None
    scale: float | tuple[float, ...] = 1.0
    rotation: StoredRotation | None = None
    measured: Measured | None = None
    added_to: Measured | None = None
    open: float | None = None
    closed: float | None = None
    relative: float | None = Field(default=None, gt=0)
    binarize: bool = False

    @property
    def is_gripper(self) -> bool:
        """Whether open and closed are given."""
        return self.open is not None

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field it reads."""
        related = (self.measured, self.added_to)
        return (self.field, *(other.field for other in related if other is not None))

    @model_validator(mode="after")
    def _consistent(self) -> Source:
        if (self.open is None) != (self.closed is None):
            raise ValueError(f"{self.field}: give both `open` and `closed`")
        if self.is_gripper and self.open == self.closed:
            raise ValueError(
                f"{self.field}: open and closed are both {self.open}; give two different numbers"
            )
        if not self.is_gripper and (self.binarize or self.relative is not None):
            raise ValueError(f"{self.field}: `binarize` and `relative` need `open` and `closed`")
        if self.relative is not None and not (self.open and self.closed):
            raise ValueError(f"{self.field}: relative commands need `open` and `closed` of opposite sign")
        if self.is_gripper and (self.rotation or self.measured or self.added_to):
            raise ValueError(f"{self.field}: a gripper takes no rotation, measured or added_to")
        if self.measured is not None and self.added_to is not None:
            raise ValueError(f"{self.field}: got both `measured` and `added_to`; give one of them")
        return self


def _parts(value: Any) -> Any:
    """`omit` -> no parts; one source -> one part."""
    if value == "omit":
        return ()
    return value if isinstance(value, list | tuple) else (value,)


Parts = Annotated[tuple[Source, ...], BeforeValidator(_parts)]


def _one_or_many(value: Any) -> Any:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _form(value: Any) -> str:
    return "components" if isinstance(value, dict) else "fields"


Vector = Annotated[
    Annotated[tuple[str, ...], Tag("fields")] | Annotated[dict[str, Parts], Tag("components")],
    Discriminator(_form),
    BeforeValidator(_one_or_many),
]


def fields_of(vector: tuple[str, ...] | dict[str, tuple[Source, ...]]) -> tuple[str, ...]:
    """Stored and computed fields that a vector is made of, each once."""
    if not isinstance(vector, dict):
        return vector
    return tuple(dict.fromkeys(field for parts in vector.values() for part in parts for field in part.fields))


class Computed(_Strict):
    """A field computed from others by a named function of whole episodes (`computed.FUNCTIONS`)."""

    function: str
    of: tuple[str, ...]


class Depth(_Strict):
    """A stored depth image: field, and stored * scale = m."""

    field: str
    scale: float = 1.0


class DatasetEntry(_Strict):
    """Where the parts of an episode lie in a stored dataset.

    Paths are slash-separated field names inside a step ("observation/image_0").

    Attributes:
        embodiment: name (or YAML file) of the robot.
        robot: name to keep the data's statistics and adapter under when they must not be shared with other
            data of the same embodiment, as where the stored unit is not documented.
        cameras: our camera name -> image field.
        stand_in_cameras: camera that was not recorded -> the one of `cameras` whose images are given for it.
        image_quirks: camera -> what is wrong with its stored images; undone when they are read.
        depth: camera -> depth field.
        action: field, or fields to concatenate, making the native action in the embodiment's order; or
            component of the embodiment -> `Source` (or list of them to concatenate), or `omit` for one that
            the dataset does not record: its slots are masked.
        constants: component that `action` omits -> native numbers to send to a robot that learns it from no
            other data (a turn of 0, a gripper that stays closed); a recipe's `policy.constants` go before.
        state: the same for proprioception; empty when the dataset has none the embodiment knows.
        computed: fields made from stored ones.
        instruction: text field of a step, "episode_metadata/..." or other episode-level text, or an integer
            field of character codes padded with 0; empty: none.
        instruction_text: the instruction of every episode, where none is stored.
        extra: our key -> field, passed on untouched.
        episode_id: episode-level text or integer field naming an episode; None: split and number.
        transforms: named episode transforms (`transforms.TRANSFORMS`), applied in order.
        rate_hz: at which the data was recorded, where it is not the embodiment's rate.
        source: where the dataset is published.
        license: as its publisher states it ("cc-by-4.0"), for the model cards; empty: unknown.
        notes: quirks, in words, and which facts are not from the dataset's own documentation.
    """

    embodiment: str
    robot: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    cameras: dict[str, str]
    stand_in_cameras: dict[str, str] = {}
    image_quirks: dict[str, tuple[ImageQuirk, ...]] = {}
    depth: dict[str, Depth] = {}
    action: Vector = ("action",)
    constants: dict[str, tuple[float, ...]] = {}
    state: Vector = ("observation/state",)
    computed: dict[str, Computed] = {}
    instruction: str = "language_instruction"
    instruction_text: str | None = None
    extra: dict[str, str] = {}
    episode_id: str | None = None
    transforms: tuple[str, ...] = ()
    rate_hz: float | None = Field(default=None, gt=0)
    source: str = ""
    license: str = ""
    notes: str = ""

    @property
    def number_fields(self) -> tuple[str, ...]:
        """Stored number fields that action and state are made of, each once, the action's first."""
        read = (*fields_of(self.action), *fields_of(self.state))
        stored = [self.computed[field].of if field in self.computed else (field,) for field in read]
        return tuple(dict.fromkeys(field for fields in stored for field in fields))

    @property
    def stored_fields(self) -> tuple[str, ...]:
        """Every stored per-step field it names but the instruction, each once, the action's first."""
        pictures = (*self.cameras.values(), *(depth.field for depth in self.depth.values()))
        return tuple(dict.fromkeys((*self.number_fields, *pictures, *self.extra.values())))

    @property
    def shown_cameras(self) -> dict[str, str]:
        """Every name that images are given by -> image field: cameras and stand-ins."""
        return self.cameras | {name: self.cameras[other] for name, other in self.stand_in_cameras.items()}

    @property
    def shown_quirks(self) -> dict[str, tuple[ImageQuirk, ...]]:
        """What is wrong with the stored images of each of `shown_cameras`."""
        of = {name: self.stand_in_cameras.get(name, name) for name in self.shown_cameras}
        return {name: self.image_quirks.get(camera, ()) for name, camera in of.items()}

    def with_stand_ins(self, wanted: Mapping[str, str]) -> DatasetEntry:
        """The entry with those stand-ins (name -> camera) whose name it lacks and whose camera it has."""
        found = {
            name: other
            for name, other in wanted.items()
            if name not in self.shown_cameras and other in self.cameras
        }
        if not found:
            return self
        return self.model_copy(update={"stand_in_cameras": self.stand_in_cameras | found})

    @model_validator(mode="after")
    def _stand_ins_are_of_cameras(self) -> DatasetEntry:
        for name, other in self.stand_in_cameras.items():
            if other not in self.cameras:
                raise ValueError(f"stand_in_cameras: no camera '{other}' in cameras to give for '{name}'")
            if name in self.cameras:
                raise ValueError(f"stand_in_cameras: '{name}' is in cameras and needs no stand-in")
        return self

    @model_validator(mode="after")
    def _constants_are_of_omitted_ones(self) -> DatasetEntry:
        for name in self.constants:
            if not isinstance(self.action, dict) or self.action.get(name) != ():
                raise ValueError(f"constants: '{name}' is no component that `action` omits; leave it out")
        return self

    @field_validator("image_quirks")
    @classmethod
    def _of_known_cameras(cls, value: dict[str, Any], info: Any) -> dict[str, Any]:
        for camera in value:
            if camera not in info.data.get("cameras", {}):
                raise ValueError(f"image_quirks: no camera '{camera}' in cameras")
        return value


class Sidecar(BaseModel):
    """Content of `vla_adapt.json`: the entry and the embodiment text at the time of recording.

    `name` is the dataset's lasting name, "" if it has none; None: what its format says (see `stable_name`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = 1
    name: str | None = None
    entry: DatasetEntry
    embodiment_yaml: str


def read_sidecar(folder: Path) -> Sidecar | None:
    """The dataset folder's own entry, or None when it has none.

    Raises:
        ValueError: the file is not readable as one.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        return Sidecar.model_validate_json(path.read_text())
    except ValueError as error:
        reason = "; ".join(str(error).split("\n")[:3])
        raise ValueError(f"{path}: not a dataset description of ours: {reason}") from None
