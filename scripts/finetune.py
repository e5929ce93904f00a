"""Train one adapter per robot from a recipe.

accelerate launch scripts/finetune.py recipes/quickstart.yaml --set train.steps=200
accelerate launch --multi_gpu --num_processes 2 scripts/finetune.py RECIPE.yaml     # 2 GPUs, or 2 CPU ranks
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import NoReturn

from vla_adapt.recipe import Recipe
from vla_adapt.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="recipe file, or the name of a built-in one")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="override a key"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget an earlier, unfinished run in the same folder"
    )
    arguments = parser.parse_args()
    try:
        train(Recipe.load(arguments.recipe, arguments.overrides), fresh=arguments.fresh)
    except ValueError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(30)  # rank 0 mostly has the same to say; then the launcher ends this process meanwhile
        print(f"finetune: {one_line(error)}", file=sys.stderr)
        end_at_once(2)


def end_at_once(code: int) -> NoReturn:
    """End without Python's teardown, where gloo's threads, still joined to the other processes, may abort.

    The launcher would then report signal 6 instead of `code`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def one_line(error: ValueError) -> str:
    """The message itself; one that comes from a loader process carries that process's traceback before it."""
    return str(error).strip().splitlines()[-1].removeprefix("ValueError: ")


if __name__ == "__main__":
    main()
