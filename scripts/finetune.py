"""Train one adapter per robot from a recipe.

accelerate launch scripts/finetune.py recipes/quickstart.yaml --set train.steps=200
accelerate launch --multi_gpu --num_processes 2 scripts/finetune.py RECIPE.yaml     # 2 GPUs, or 2 CPU ranks

A killed or pre-empted run (SIGTERM, SIGUSR1) goes on when the same command is started again. Exit status:
0 the run is finished, 2 it cannot run, 3 another process of it is lost, 128 + signal it has saved and ended.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from typing import NoReturn

from vla_adapt.recipe import Recipe
from vla_adapt.training.loop import train
from vla_adapt.training.pulse import EXIT_LOST, RankLost
from vla_adapt.training.stop_signal import Stopped, follow_launcher


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="recipe file, or the name of a built-in one")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="override a key"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget what an earlier run left in the same folder"
    )
    arguments = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a killed run's log file tells how far it came
    follow_launcher()
    main_rank = os.environ.get("RANK", "0") == "0"
    try:
        train(Recipe.load(arguments.recipe, arguments.overrides), fresh=arguments.fresh)
    except RankLost as lost:
        say_and_end(lost, EXIT_LOST, speaks=lost.speaks)
    except Stopped as stopped:
        say_and_end(stopped, 128 + stopped.signal, speaks=main_rank)
    except ValueError as error:
        say_and_end(error, 2, speaks=main_rank)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        end(0)


def say_and_end(error: Exception, code: int, speaks: bool) -> NoReturn:
    """Say it in one line, and end.

    A process that does not speak first waits for the one that has the same to say: the launcher then ends it.
    """
    if not speaks:
        time.sleep(5 if isinstance(error, Stopped | RankLost) else 30)
    if speaks or not isinstance(error, Stopped):
        print(f"finetune: {one_line(error)}", file=sys.stderr)
    end(code)


def end(code: int) -> NoReturn:
    """End without Python's teardown, in which a thread of gloo that holds a tensor aborts now and then.

    The launcher would then report signal 6 for a run that has all its files.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def one_line(error: Exception) -> str:
    """The message itself; one that comes from a loader process carries that process's traceback before it."""
    return str(error).strip().splitlines()[-1].removeprefix("ValueError: ")


if __name__ == "__main__":
    main()
