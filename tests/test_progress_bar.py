"""The progress bar appears on a terminal after a while, counts, and leaves logs alone."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stderr

import pytest
from rich.file_proxy import FileProxy

from vla_adapt import progress_bar as module
from vla_adapt.progress_bar import Bar, progress_bar


class Terminal:
    """A pseudo terminal, inside `with` in the place of stderr; `text` is all that was written to it."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w")
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> None:
        self._there = redirect_stderr(self.stream)
        self._there.__enter__()

    def __exit__(self, *_: object) -> None:
        self._there.__exit__(None, None, None)

    def _read(self) -> None:
        while True:
            try:
                self._bytes += os.read(self._master, 1 << 16)
            except OSError:
                return

    def shows(self, *words: str) -> bool:
        """Whether all words turn up within a few seconds."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if all(word in self.text for word in words):
                return True
            time.sleep(0.01)
        return False

    @property
    def text(self) -> str:
        return self._bytes.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    made = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(module, "AFTER_S", 0.05)
    monkeypatch.setattr(module, "_EVERY_S", 0.01)
    yield made
    made.stream.close()


def test_counts_with_rate_and_note_once_the_time_has_come(terminal: Terminal) -> None:
    with terminal, progress_bar("indexing [x]", 4000, "steps", done=1000) as bar:
        bar.note = "file-000.parquet"
        assert terminal.shows("indexing [x]", "1,000/4,000 steps", "file-000.parquet")
        for _ in range(20):
            bar.advance(100)
            time.sleep(0.02)
        assert terminal.shows("3,000/4,000 steps", "/s", "0:00:0")
    assert not any(thread.name == "progress bar" for thread in threading.enumerate())


def test_bytes_are_shown_as_such(terminal: Terminal) -> None:
    with terminal, progress_bar("copying", 5_000_000, "bytes") as bar:
        bar.advance(2_500_000)
        assert terminal.shows("2.5 MB/5.0 MB")


def test_other_words_begin_another_count(terminal: Terminal) -> None:
    with terminal, progress_bar("examining") as bar:
        bar.at("a: episodes", 3, 7)
        assert terminal.shows("a: episodes", "3/7")
        bar.at("b: images", 1, None)
        assert terminal.shows("b: images")
        assert bar.part == 2
        bar.at("b: images", 2, 5)
        assert terminal.shows("2/5")
        assert bar.part == 2


def test_short_work_shows_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AFTER_S", 60)
    with terminal, progress_bar("filtering", 3, "episodes", keep=True) as bar:
        bar.advance(3)
    assert terminal.text == ""


def test_only_the_outer_of_two_is_shown(terminal: Terminal) -> None:
    with terminal, progress_bar("outer", 2) as outer:
        assert terminal.shows("outer")
        with progress_bar("inner", 3):
            time.sleep(0.2)
        outer.advance()
        assert terminal.shows("1/2")
    assert "inner" not in terminal.text


def test_what_is_printed_to_a_file_stays_there(terminal: Terminal, capfd: pytest.CaptureFixture[str]) -> None:
    with terminal, progress_bar("measuring", 3):
        assert terminal.shows("measuring")
        print("a result")
    assert "a result" in capfd.readouterr().out
    assert "a result" not in terminal.text


@pytest.mark.parametrize("why", ["log", "other rank", "not asked", "dumb"])
def test_no_bar_and_no_thread(
    why: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a log even where colors are asked for."""
    if why == "log":
        monkeypatch.setenv("FORCE_COLOR", "1")
    if why == "other rank":
        monkeypatch.setenv("RANK", "1")
    if why == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    stderr = nullcontext() if why == "log" else terminal
    with stderr, progress_bar("training", 10, "steps", keep=True, shown=why != "not asked") as bar:
        assert not any(thread.name == "progress bar" for thread in threading.enumerate())
        bar.advance(10)
        time.sleep(0.1)
    assert (bar.done, terminal.text) == (10, "")
    assert capfd.readouterr() == ("", "")


def test_an_error_ends_the_bar_and_goes_on(terminal: Terminal) -> None:
    def fail(work: Callable[[Bar], None]) -> None:
        with terminal, progress_bar("reading", 2) as bar:
            work(bar)

    def damaged(bar: Bar) -> None:
        assert terminal.shows("reading")
        raise ValueError("shard 3 is damaged")

    with pytest.raises(ValueError, match="shard 3"):
        fail(damaged)
    assert not any(thread.name == "progress bar" for thread in threading.enumerate())


def test_a_forked_process_prints_past_the_bar(terminal: Terminal) -> None:
    """Through the bar it would wait for ever where the drawing thread held the lock when it was forked."""
    with terminal, progress_bar("measuring", 2):
        assert terminal.shows("measuring")
        assert isinstance(sys.stderr, FileProxy)
        child = os.fork()
        if not child:
            os._exit(isinstance(sys.stderr, FileProxy) or isinstance(sys.stdout, FileProxy))
        assert os.waitpid(child, 0)[1] == 0
