"""The one progress bar of all long work: on stderr, with a rate, from the second second on."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

AFTER_S = 2.0  # work that ends sooner shows nothing
_EVERY_S = 0.1
# Held by the bar on the terminal: of bars inside one another only one is shown.
_TERMINAL = threading.Lock()


def _plain_streams() -> None:
    """Print past the bar: in a forked process no thread draws it, and its lock may be held for ever."""
    if isinstance(sys.stdout, FileProxy):
        sys.stdout = sys.stdout.rich_proxied_file
    if isinstance(sys.stderr, FileProxy):
        sys.stderr = sys.stderr.rich_proxied_file


os.register_at_fork(after_in_child=_plain_streams)


class Bar:
    """How far a piece of work is: plain numbers that the work sets and a thread shows ten times a second.

    Attributes:
        what: is being done.
        done, total: in `unit`s; total None: nobody knows.
        unit: "steps", "files", ...; "bytes" are shown as kB, MB, GB.
        note: a few words more.
        part: raised where another count begins.
    """

    def __init__(self, what: str, total: int | float | None, unit: str, done: int | float = 0):
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.note, self.part, self.began = "", 0, time.monotonic()

    def advance(self, amount: int | float = 1) -> None:
        """So much more is done."""
        self.done += amount

    def at(self, what: str, done: int | float, total: int | float | None) -> None:
        """Set all at once; other words begin another count."""
        if what != self.what:
            self.what, self.part, self.began = what, self.part + 1, time.monotonic()
        self.done, self.total = done, total


@contextmanager
def progress_bar(
    what: str,
    total: int | float | None = None,
    unit: str = "",
    *,
    done: int | float = 0,
    keep: bool = False,
    shown: bool = True,
) -> Generator[Bar]:
    """A bar while the `with` block lasts, shown when that takes more than `AFTER_S`.

    Shown only where stderr is a terminal (never in a log), by the first process of a launch, and one at a
    time: inside another bar nothing is shown. `Bar.advance` costs a tenth of a microsecond either way.

    Args:
        what: is being done.
        total: how much there is; None: nobody knows.
        unit: in which it is counted; "bytes": as kB, MB, GB.
        done: of it already.
        keep: leave the finished bar on the screen.
        shown: False: never shown.
    """
    bar = Bar(what, total, unit, done)
    console = _watched() if shown else None
    if console is None:
        yield bar
        return
    over = threading.Event()
    thread = threading.Thread(target=_show, args=(bar, console, over, keep), name="progress bar", daemon=True)
    thread.start()
    try:
        yield bar
    finally:
        over.set()
        thread.join()


def _watched() -> Console | None:
    """Stderr, where a person sees it and this process is the one that shall write there."""
    first = os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None
    if not (first and sys.stderr.isatty()):
        return None
    console = Console(stderr=True)
    return console if console.is_interactive else None


def _show(bar: Bar, console: Console, over: threading.Event, keep: bool) -> None:
    """Body of the thread: wait, then draw until it is over."""
    if over.wait(AFTER_S):
        return
    while not _TERMINAL.acquire(blocking=False):
        if over.wait(_EVERY_S):
            return
    try:
        columns = (
            TextColumn("{task.description}"), BarColumn(), _Count(), _Rate(),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        # What is printed meanwhile goes above the bar, unless it goes to a file.
        with Progress(
            *columns, console=console, transient=not keep, auto_refresh=False,
            redirect_stdout=sys.stdout.isatty(),
        ) as display:  # fmt: skip
            drawn: int | None = None
            while True:
                ended = over.wait(_EVERY_S)
                drawn = _draw(display, bar, drawn)
                if ended:
                    return
    finally:
        _TERMINAL.release()


def _draw(display: Progress, bar: Bar, drawn: int | None) -> int:
    """Show the state of `bar`; the part that is drawn now."""
    what, done, total, part, note = escape(bar.what), bar.done, bar.total, bar.part, escape(bar.note)
    if part != drawn:
        for old in display.task_ids:
            display.remove_task(old)
        task = display.add_task(what, total=total, completed=done, unit=bar.unit, note=note)  # type: ignore[arg-type]
        display.tasks[0].start_time = bar.began
    else:
        (task,) = display.task_ids
        display.update(task, description=what, total=total, completed=done, note=note)
    display.refresh()
    return part


class _Count(ProgressColumn):
    """How much is done of how much."""

    def render(self, task: Task) -> Text:
        amount = decimal if task.fields["unit"] == "bytes" else "{:,}".format
        of = "" if task.total is None else f"/{amount(int(task.total))}"
        unit = "" if task.fields["unit"] == "bytes" else f" {task.fields['unit']}"
        return Text(f"{amount(int(task.completed))}{of}{unit}")


class _Rate(ProgressColumn):
    """How much a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        if task.fields["unit"] == "bytes":
            return Text(f"{decimal(int(speed))}/s")
        return Text(f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s")
