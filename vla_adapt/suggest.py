"""Helpful refusals: "did you mean ...", and YAML read into a pydantic model with one-line errors."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """A phrase to append to an error: the near name when there is one, else the known names.

    Example: `did_you_mean("ur5", names)` -> "did you mean 'ur5e'?".
    """
    names = [str(name) for name in known]
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(got).lower(), list(folded), n=1, cutoff=0.6)
    if near:
        return f"did you mean {folded[near[0]]!r}?"
    return f"known: {', '.join(sorted(names))}" if names else "none are known"


def load_yaml_model(model_cls: type[Model], text: str, where: str) -> Model:
    """Parse YAML `text` into `model_cls`.

    Args:
        model_cls: a pydantic model; with `extra="forbid"` a misspelt key is refused with the near name.
        text: the YAML document, a mapping.
        where: what to call the text in errors, e.g. the file's path.

    Raises:
        ValueError: one line, naming `where`, the key and what was wanted.
    """
    return validate_model(model_cls, parse_yaml(text, where), where)


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """YAML text to a mapping; refuses broken syntax, repeated keys and anything but a mapping."""
    try:
        data = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{where}:{line} not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{where}: got {type(data).__name__}, wanted a YAML mapping of keys to values")
    return data


def validate_model(model_cls: type[Model], data: Any, where: str) -> Model:
    """Validate `data` as `model_cls`, turning pydantic's report into a one-line ValueError."""
    try:
        return model_cls.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # A misspelt key also shows up as a missing one: report the misspelling.
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    raise ValueError(f"{where}: {_explain(model_cls, dict(details[0]))}{more}") from None


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen and key != "<<":
                mark = key_node.start_mark
                raise yaml.MarkedYAMLError(problem=f"key {key!r} given twice", problem_mark=mark)
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _explain(model_cls: type[BaseModel], detail: dict[str, Any]) -> str:
    """One line for one entry of pydantic's error list."""
    location: Sequence[Any] = detail["loc"]
    kind, context = detail["type"], detail.get("ctx", {})
    at = _dotted(location)
    if kind == "extra_forbidden":
        inside = f" in {_dotted(location[:-1])}" if len(location) > 1 else ""
        key = str(location[-1])
        return f"unknown key {key!r}{inside}; {did_you_mean(key, _known_keys(model_cls, location[:-1]))}"
    if kind == "missing":
        inside = f" in {_dotted(location[:-1])}" if len(location) > 1 else ""
        return f"missing key {str(location[-1])!r}{inside}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    prefix = f"{at}: " if at else ""
    if kind == "literal_error" and isinstance(detail["input"], str):
        choices = [part.strip(" '") for part in context["expected"].replace(" or ", ",").split(",")]
        near = did_you_mean(detail["input"], choices)
        return f"{prefix}got {detail['input']!r}, wanted {context['expected']}; {near}"
    if kind == "union_tag_invalid":
        tags = [part.strip(" '") for part in context["expected_tags"].split(",")]
        key = context["discriminator"].strip("'")
        return f"{prefix}got {key} {context['tag']!r}; {did_you_mean(context['tag'], tags)}"
    if kind == "value_error":
        return f"{prefix}{message}"
    shown = repr(detail["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{prefix}got {shown}; {message[:1].lower()}{message[1:]}"


def _dotted(location: Sequence[Any]) -> str:
    """A pydantic error location as `action[2].unit`."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _known_keys(model_cls: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Field names (and aliases) of the model found by walking `location` from `model_cls`."""
    here: list[Any] = [model_cls]
    for part in location:
        onward = [found for kind in here for found in _step(kind, part)]
        here = onward or here  # pydantic also puts union tags into the location; they lead nowhere
    keys: list[str] = []
    for kind in here:
        for name, field in kind.model_fields.items() if _is_model(kind) else ():
            keys.append(field.alias or name)
    return list(dict.fromkeys(keys))


def _step(kind: Any, part: Any) -> list[Any]:
    """Types reached from type `kind` by field name, mapping key or index `part`, unions spread out."""
    if _is_model(kind):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                return _spread(field.annotation)
        return []
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, tuple, set, frozenset, Sequence) and isinstance(part, int) and arguments:
        return _spread(arguments[0])
    if origin is dict and len(arguments) == 2:
        return _spread(arguments[1])
    return []


def _spread(annotation: Any) -> list[Any]:
    """The members of a union (nested, also under Annotated); a plain type is its own only member."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _spread(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _spread(part)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
