"""`vla-adapt adapters ...`: list, verify, merge, convert and publish bundles.

As in `cli.py`, imports happen inside the verbs: `vla-adapt robots` must answer at once and without PyTorch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vla_adapt.cli_data import console
from vla_adapt.progress_bar import progress_bar

if TYPE_CHECKING:
    from vla_adapt.policy.openvla import OpenVLA

adapters_app = typer.Typer(
    no_args_is_help=True, help="Bundles. Example: vla-adapt adapters verify runs/x/bundles"
)

Base = Annotated[str, typer.Option("--base", help="'tiny' (shipped) or an OpenVLA checkpoint folder")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="of the base's weights: float32, or bfloat16 for half the memory")
]
BundleFolder = Annotated[Path, typer.Argument(help="one bundle folder", metavar="BUNDLE")]
Out = Annotated[Path, typer.Option("--out", help="folder to write")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace what an earlier call wrote there")]


@adapters_app.command("list")
def adapters_list(folder: Path) -> None:
    """List the bundles in a folder. Example: vla-adapt adapters list runs/x/bundles"""
    from vla_adapt.adaptation.bundle_manifest import find_bundles, read_manifest

    table = Table("robot", "folder", "base", "tensors", "recipe")
    for path in find_bundles(folder):
        manifest = read_manifest(path)
        facts = manifest["facts"]
        table.add_row(
            manifest["robot"], str(path), manifest["base_fingerprint"][:12], str(len(manifest["adapter"])),
            str(facts.get("recipe_name", "")),
        )  # fmt: skip
    console.print(table)


@adapters_app.command("show")
def adapters_show(folder: Path) -> None:
    """Print the model card and facts of one bundle. Example: vla-adapt adapters show runs/x/bundles/ur5e"""
    from vla_adapt.adaptation.bundle import Bundle

    bundle = Bundle.load(folder)
    console.print(bundle.card, markup=False)
    facts = {key: value for key, value in bundle.facts.items() if key != "recipe"}
    console.print(json.dumps(facts, indent=1), markup=False)


@adapters_app.command("verify")
def adapters_verify(
    folder: Path,
    base: Base = "tiny",
    dtype: Dtype = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, ...; auto takes a GPU when there is one")] = "auto",
) -> None:
    """Check files and base of every bundle in FOLDER and replay its golden observation -> action pair.

    Exit code 1 when one fails. Example: vla-adapt adapters verify runs/x/bundles --base openvla-7b
    """
    from vla_adapt.adaptation.bundle import Bundle
    from vla_adapt.adaptation.bundle_manifest import find_bundles

    model = open_base(base, dtype, device)
    failed = 0
    for path in find_bundles(folder):
        try:
            result = Bundle.load(path).verify(model)
        except ValueError as error:
            failed += 1
            print(f"FAILED {error}")
        else:
            print(
                f"ok     {result.robot}: golden pair replayed, {result.max_difference:.2g} of the range "
                f"apart (allowed {result.tolerance:.2g})"
            )
    if failed:
        raise SystemExit(1)


@adapters_app.command("warm-start")
def adapters_warm_start(
    bundle: Annotated[Path, typer.Argument(help="bundle of the robot that is trained already")],
    source: Annotated[str, typer.Option("--from", help="episodes of that robot")],
    target: Annotated[str, typer.Option("--to", help="episodes of the robot to start")],
    out: Annotated[Path, typer.Option(help="folder of the new bundle")],
    base: Base = "tiny",
    robot: Annotated[str | None, typer.Option(help="embodiment of --to, where the data does not say")] = None,
    paired: Annotated[bool, typer.Option(help="n-th episode with n-th, step by step")] = False,
    alignment: Annotated[str, typer.Option(help="of episodes of one instruction: time or dtw")] = "time",
    kind: Annotated[
        str, typer.Option(help="linear, or mlp (its linear part alone reaches the head)")
    ] = "linear",
    seed: int = 0,
    overwrite: Overwrite = False,
) -> None:
    """Learn the map from one robot's actions to another's and leave a bundle from which the other starts.

    Example: vla-adapt adapters warm-start runs/a/bundles/ur5e --from data/ur5e --to data/xarm --out xarm
    """
    from vla_adapt.adaptation.action_adapter import ActionAdapterConfig
    from vla_adapt.adaptation.action_pairs import PairingConfig
    from vla_adapt.adaptation.bundle import Bundle
    from vla_adapt.adaptation.bundle_manifest import MANIFEST
    from vla_adapt.adaptation.folder import claim_folder
    from vla_adapt.adaptation.warm_start import make_warm_bundle
    from vla_adapt.episodes import open_dataset
    from vla_adapt.policy.openvla import OpenVLA
    from vla_adapt.resources import base_dir
    from vla_adapt.suggest import validate_model

    claim_folder(out, MANIFEST, overwrite)
    before = Bundle.load(bundle)
    episodes = "paired" if paired else "instruction"
    started, errors = make_warm_bundle(
        before, OpenVLA.from_pretrained(base_dir(base)),
        [open_dataset(source, embodiment=before.embodiment)], [open_dataset(target, embodiment=robot)],
        validate_model(PairingConfig, {"episodes": episodes, "alignment": alignment}, "warm-start"),
        validate_model(ActionAdapterConfig, {"kind": kind}, "warm-start"), seed=seed,
    )  # fmt: skip
    started.save(out)
    print(
        f"{out}: {started.robot} started from {before.robot}; held-out error of the map {errors.adapter:.3f} "
        f"(linear part {errors.linear:.3f}, copying shared slots {errors.copy:.3f}, predict-the-mean "
        f"{errors.mean:.3f})\ntrain on from it with `--set warm_start.{started.robot}={out}`"
    )


@adapters_app.command("merge")
def adapters_merge(
    bundle: BundleFolder,
    out: Out,
    base: Base = "tiny",
    dtype: Annotated[
        str | None,
        typer.Option(help="of the weights written: float32, float16, bfloat16; default: the base's"),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="largest difference allowed, in parts of the largest output; "
            "default: 1e-4 in float32, 1e-2 in float16, 5e-2 in bfloat16",
            min=0.0,
        ),
    ] = None,
    check_dtype: Annotated[
        str, typer.Option(help="number type both models run in for the check; bfloat16 halves the memory")
    ] = "float32",
    device: Annotated[str, typer.Option(help="where they run: cpu, cuda, ... or auto")] = "cpu",
    overwrite: Overwrite = False,
) -> None:
    """Merge one robot's adapter into a full checkpoint in the original Hugging Face layout, and check it.

    Example: vla-adapt adapters merge runs/x/bundles/ur5e --base openvla-7b --out merged/ur5e
    """
    from vla_adapt.adaptation.merge import DTYPES, merge_bundle
    from vla_adapt.policy.device import usable_device
    from vla_adapt.resources import base_dir

    with progress_bar("merging") as bar:
        report = merge_bundle(
            bundle, base_dir(base), out, dtype=_choice("--dtype", dtype, DTYPES) if dtype else None,
            tolerance=tolerance, check_dtype=_choice("--check-dtype", check_dtype, DTYPES),
            device=usable_device(device),
            overwrite=overwrite,
            progress=lambda what, done, total: bar.at(what, done, total if total > 1 else None),
        )  # fmt: skip
    kind = str(report.dtype).removeprefix("torch.")
    print(f"wrote {out}: '{report.robot}' merged into {report.modules} weights, {kind}")
    print(
        f"difference from the adapted model: {report.difference:.3g} of the largest output (allowed "
        f"{report.tolerance:.3g}; the adapter itself: {report.effect:.3g}), golden action chunk "
        f"{report.chunk_difference:.3g} of the half range"
    )
    _print_notes(report.notes)


@adapters_app.command("export")
def adapters_export(
    bundle: BundleFolder,
    to: Annotated[str, typer.Option("--to", help="'openvla': the original's module names; 'peft': ours")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Write a bundle's adapter as a PEFT folder for the original OpenVLA stack, or for PEFT on ours.

    Example: vla-adapt adapters export runs/x/bundles/ur5e --to openvla --out ur5e_openvla
    """
    from vla_adapt.adaptation.export import TARGETS, export_bundle

    target = _choice("--to", to, {name: name for name in TARGETS})
    report = export_bundle(bundle, target, out, overwrite)
    print(
        f"wrote {out}: adapter of '{report.robot}' for {to}, {report.modules} modules, "
        f"{report.tensors} tensors, largest rank {report.largest_rank}"
    )


@adapters_app.command("import")
def adapters_import(
    folder: Annotated[Path, typer.Argument(help="adapter folder that OpenVLA's finetune.py saved")],
    out: Out,
    base: Base = "tiny",
    robot: Annotated[str | None, typer.Option(help="name of a built-in embodiment")] = None,
    embodiment: Annotated[Path | None, typer.Option(help="instead: YAML file of an embodiment")] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="dataset_statistics.json of the run; default: the one in FOLDER")
    ] = None,
    unnorm_key: Annotated[str | None, typer.Option(help="dataset in it, where there are several")] = None,
    camera: Annotated[str | None, typer.Option(help="whose images the policy sees; default: primary")] = None,
    center_crop: Annotated[
        float, typer.Option(help="area of the middle it sees: 0.9 after training with image_aug")
    ] = 1.0,
    image: Annotated[Path | None, typer.Option(help="picture of the golden pair; default: made up")] = None,
    prompt: Annotated[str | None, typer.Option(help="instruction of the golden pair")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn an adapter of the original's finetune.py into a bundle that can be served.

    Example: vla-adapt adapters import adapter-tmp/x --base openvla-7b --robot widowx
    --statistics runs/x/dataset_statistics.json --out bundles/widowx
    """
    from vla_adapt.adaptation.import_original import DEFAULT_PROMPT, ImportChoices, import_adapter, read_image
    from vla_adapt.embodiment import Embodiment
    from vla_adapt.resources import base_dir

    if (robot is None) == (embodiment is None):
        raise ValueError("import wants the robot: either --robot NAME or --embodiment FILE")
    choices = ImportChoices(
        statistics=statistics, unnorm_key=unnorm_key, camera=camera, center_crop=center_crop,
        image=read_image(image) if image else None, prompt=prompt or DEFAULT_PROMPT,
    )  # fmt: skip
    kind = Embodiment.load(robot or embodiment or "")
    report = import_adapter(folder, base_dir(base), kind, out, choices, overwrite)
    print(
        f"wrote {out}: bundle of '{report.robot}', {report.modules} modules, statistics '{report.unnorm_key}'"
    )
    if report.dropped:
        print(
            f"left out: adapters of {len(report.dropped)} modules that never run in OpenVLA (first: "
            f"{report.dropped[0]})"
        )
    _print_notes(report.notes)


@adapters_app.command("push")
def adapters_push(
    bundle: BundleFolder,
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub")],
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="the base's repository for the card, e.g. openvla/openvla-7b")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="verify and list the files; send nothing")
    ] = False,
) -> None:
    """Verify a bundle and upload it to the Hugging Face Hub.

    Example: vla-adapt adapters push runs/x/bundles/ur5e me/openvla-ur5e --base-model openvla/openvla-7b
    """
    from vla_adapt.adaptation.push import plan_push, push

    plan = plan_push(bundle, repo_id, base_model)
    for name, size in plan.sizes.items():
        print(f"{size:>14,d}  {name}")
    total = f"{len(plan.files)} files, {sum(plan.sizes.values()) / 1e6:.2f} MB"
    if dry_run:
        print(
            f"dry run: would upload {total} to {repo_id}{' (private)' if private else ''}; nothing was sent"
        )
        return
    print(f"uploaded {total}: {push(plan, private)}")


def open_base(base: str, dtype: str, device: str) -> OpenVLA:
    """The base that bundles are served from or verified on, as the options of these names ask for it.

    Raises:
        ValueError: no such checkpoint, another `dtype` than float32 and bfloat16, no such device here.
    """
    from vla_adapt.adaptation.merge import DTYPES
    from vla_adapt.policy.device import usable_device
    from vla_adapt.policy.openvla import OpenVLA
    from vla_adapt.resources import base_dir

    known = {name: DTYPES[name] for name in ("float32", "bfloat16")}
    kind = _choice("--dtype", dtype, known)
    return OpenVLA.from_pretrained(base_dir(base), kind, usable_device(device))


def _choice(option: str, got: str, known: dict[str, Any]) -> Any:
    from vla_adapt.suggest import did_you_mean

    if got not in known:
        raise ValueError(f"{option} '{got}': {did_you_mean(got, known)}")
    return known[got]


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        print(f"note: {note}")
