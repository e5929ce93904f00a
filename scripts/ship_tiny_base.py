"""Put a trained tiny OpenVLA into the package, in bfloat16, and check that it stays small.

.venv/bin/python scripts/ship_tiny_base.py runs/pretrain_tiny/model
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from vla_adapt.adaptation.folder import atomic_folder
from vla_adapt.policy.heads import load_head, save_head
from vla_adapt.policy.openvla import OpenVLA
from vla_adapt.resources import tiny_base_dir

LIMIT_BYTES = 5 * 10**6


def main() -> None:
    source, target = Path(sys.argv[1]), tiny_base_dir()
    model = OpenVLA.from_pretrained(source, dtype=torch.bfloat16)
    head = load_head(source, model).to(torch.bfloat16)
    with atomic_folder(target) as aside:
        model.save_pretrained(aside)
        save_head(head, aside)
        shutil.copy(target / "README.md", aside)
        size = sum(file.stat().st_size for file in aside.iterdir())
        if size > LIMIT_BYTES:
            raise SystemExit(f"the base takes {size} bytes, at most {LIMIT_BYTES} may be shipped")
    print(f"{target}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
