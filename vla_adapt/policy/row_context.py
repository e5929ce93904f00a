"""What a model's layers need to know about the rows of the running batch, also when they recompute."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any


class RowContext:
    """Holds one value, `current`, that a model's own layers may read in their forward pass.

    One per model, so that models do not disturb each other; not locked: one forward pass at a time.
    Checkpointed layers run again in the backward pass, when the value has long changed. Handing
    `at_checkpoint` to `torch.utils.checkpoint` as `context_fn` lets them see what they saw the first time.
    """

    def __init__(self) -> None:
        self.current: Any = None

    def using(self, value: Any) -> AbstractContextManager[None]:
        """`current` is `value` inside, and what it was before outside; may be entered again and again."""
        return _Using(self, value)

    def at_checkpoint(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The contexts of a checkpointed part's first run and of its runs in backward passes."""
        return nullcontext(), self.using(self.current)


class _Using(AbstractContextManager[None]):
    def __init__(self, context: RowContext, value: Any) -> None:
        self._context, self._value = context, value
        self._before: list[Any] = []

    def __enter__(self) -> None:
        self._before.append(self._context.current)
        self._context.current = self._value

    def __exit__(self, *_: object) -> None:
        self._context.current = self._before.pop()
