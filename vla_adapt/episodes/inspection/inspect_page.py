"""One episode as an HTML page that works offline: frames with a scrubber, a curve per named slot, facts."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vla_adapt.embodiment import Embodiment
from vla_adapt.episodes.doctor.doctor_track import Track, Tracker
from vla_adapt.episodes.inspection.inspect_curves import WIDTH, Curve, chart
from vla_adapt.episodes.inspection.inspect_frames import Thumbnails, thumbnails
from vla_adapt.episodes.recorded_rate import recorded_rate_hz
from vla_adapt.episodes.source import Episode, EpisodeDataset
from vla_adapt.types import slot_group_of

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1180px;margin:1.5em auto;padding:0 1em;color:#222}
h1{font-size:1.3em;margin:.2em 0}h2{font-size:1.1em;margin:1.6em 0 .4em;border-bottom:1px solid #ddd}
#changes{margin:-.4em 0 .6em}#changes a{color:#036}
small{color:#666}.bad{color:#b00}blockquote{font-size:1.25em;margin:.3em 0 .6em;color:#036}
#player{position:sticky;top:0;background:#fff;padding:.4em 0 .6em;border-bottom:1px solid #ddd;z-index:1}
#frames{display:flex;gap:.6em;flex-wrap:wrap}#frames div{text-align:center}
#frames img{display:block;height:210px;min-width:120px;background:#eee;image-rendering:auto}
#bar{display:flex;align-items:center;gap:.8em;margin-top:.5em}#bar input{flex:1}
#bar button{font:inherit;width:5em}
#bar output{min-width:12em;white-space:pre;text-align:right;font-variant-numeric:tabular-nums}
.grid{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:.5em 1.6em}.head{color:#666}
figure{margin:0}figcaption{font-size:13px;display:flex;gap:.5em;align-items:baseline}
figcaption output{margin-left:auto;font-variant-numeric:tabular-nums}
.plot{display:flex}.axis{font-size:11px;white-space:nowrap;color:#666;width:4.6em;text-align:right;padding-right:.4em;
display:flex;flex-direction:column;justify-content:space-between}
svg{flex:1;width:0;height:78px;background:#fafafa;border:1px solid #e2e2e2;cursor:crosshair}
path{fill:none;stroke-width:1.5;vector-effect:non-scaling-stroke}
path.action{stroke:#c30}path.state{stroke:#06c}.closed{fill:#e9ddc4}
line{vector-effect:non-scaling-stroke;stroke-width:1}.zero{stroke:#ccc}.cursor{stroke:#111}
table{border-collapse:collapse}
td,th{border:1px solid #ccc;padding:.15em .7em;text-align:left;vertical-align:top}
pre{background:#f6f6f6;padding:.6em;overflow:auto;font-size:12px}
.key i{display:inline-block;width:1.3em;height:.7em;margin:0 .3em 0 1em}
"""

_SCRIPT = """
const D=JSON.parse(document.getElementById("data").textContent),$=s=>document.querySelector(s);
const slider=$("#step"),figures=[...document.querySelectorAll("figure")];
const images=Object.fromEntries([...document.querySelectorAll("#frames img")].map(i=>[i.dataset.camera,i]));
function show(t){
  slider.value=t;
  $("#where").textContent=`step ${t} of ${D.steps-1}   ${(t/D.rate_hz).toFixed(2)} s`;
  for(const [camera,uris] of Object.entries(D.frames)) images[camera].src=uris[Math.floor(t/D.stride)]||"";
  const told=D.words.filter(([step])=>step<=t).pop();
  if(told)$("#words").textContent=told[1]||"no instruction";
  const x=D.width*t/Math.max(D.steps-1,1);
  for(const f of figures){
    const c=f.querySelector(".cursor");c.setAttribute("x1",x);c.setAttribute("x2",x);
    const v=D.curves[f.dataset.curve][t];f.querySelector("output").textContent=v===null?"not a number":v;
  }
}
slider.addEventListener("input",()=>show(+slider.value));
for(const f of figures){
  const svg=f.querySelector("svg");
  const go=e=>{const r=svg.getBoundingClientRect();
    show(Math.max(0,Math.min(D.steps-1,Math.round((e.clientX-r.left)/r.width*(D.steps-1)))))};
  svg.addEventListener("pointerdown",e=>{svg.setPointerCapture(e.pointerId);go(e)});
  svg.addEventListener("pointermove",e=>{if(e.buttons)go(e)});
}
for(const a of document.querySelectorAll("#changes a"))
  a.addEventListener("click",e=>{e.preventDefault();show(+a.dataset.step)});
let timer=null;
$("#play").addEventListener("click",()=>{
  if(timer){clearInterval(timer);timer=null}
  else{
    if(+slider.value>=D.steps-1)show(0);
    timer=setInterval(()=>{if(+slider.value>=D.steps-1){clearInterval(timer);timer=null;$("#play").textContent="play"}
      else show(+slider.value+1)},1000/D.rate_hz)
  }
  $("#play").textContent=timer?"pause":"play";
});
if(D.steps)show(0);
"""


def write_page(
    dataset: EpisodeDataset,
    number: int,
    out: Path,
    max_mb: float = 8.0,
    advance: Callable[[int, int], None] | None = None,
) -> None:
    """Write the page of one episode.

    Args:
        dataset: of any format; open it with `check=False` to look at episodes with NaN.
        number: of the episode, from 0.
        out: HTML file; its folder is made.
        max_mb: megabytes of embedded frames; thumbnails are shrunk, then steps left out, to keep to it.
        advance: called with (frames done, of how many).

    Raises:
        ValueError: no such episode.
    """
    if not 0 <= number < len(dataset):
        raise ValueError(f"{dataset.name}: episode {number} asked, it has {len(dataset)}; count from 0")
    episode = dataset[number]
    frames = thumbnails(episode, max_mb, advance)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(dataset, number, episode, frames), encoding="utf-8")


def page(dataset: EpisodeDataset, number: int, episode: Episode, frames: Thumbnails) -> str:
    """The page as text; everything it shows is inside."""
    robot, rate_hz = dataset.embodiment, recorded_rate_hz(dataset)
    rows = curve_rows(robot, episode)
    curves = [curve for row in rows for curve in row if curve is not None]
    data = {
        "steps": len(episode), "rate_hz": rate_hz, "stride": frames.stride, "width": WIDTH,
        "frames": frames.uris, "words": _words(episode),
        "curves": [_numbers(curve.values) for curve in curves],
    }  # fmt: skip
    title = f"{dataset.name}: episode {number}"
    return "\n".join([
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(title)} <small>{html.escape(episode.episode_id)}, "
        f"{html.escape(robot.title)}</small></h1>",
        f"<blockquote id=words>{_told(episode.instruction)}</blockquote>",
        _changes(episode),
        *(f"<p class=bad>{html.escape(problem)}</p>" for problem in frames.problems[:5]),
        _player(episode, frames),
        _grid(rows),
        _facts(dataset, number, episode, frames),
        f'<script type="application/json" id=data>{_json(data)}</script><script>{_SCRIPT}</script>',
    ])  # fmt: skip


def curve_rows(robot: Embodiment, episode: Episode) -> list[tuple[Curve | None, Curve | None]]:
    """(action, state) curves in unified units, one row per slot that either of them fills, in slot order.

    Components that the dataset does not record have no curve.
    """
    tracks = [Tracker(robot, "action", episode.action_omits).track(episode.action, episode.state)]
    if episode.state is not None and robot.proprio:
        tracks.append(Tracker(robot, "proprio", episode.state_omits).track(episode.state, episode.state))
    closed = {
        name.partition("_")[0]: np.nan_to_num(opening, nan=1.0) < 0.5
        for name, _, opening in tracks[0].openings()
    }
    action, state = (*(_curves(track, closed) for track in tracks), {})[:2]
    return [(action.get(slot), state.get(slot)) for slot in sorted({*action, *state})]


def _curves(track: Track, closed: Mapping[str, np.ndarray]) -> dict[int, Curve]:
    """Curve of each slot; `closed` by side, "right" or "left"."""
    found: dict[int, Curve] = {}
    what = "action" if track.kind == "action" else "state"
    for column, (slot, name) in enumerate(zip(track.slots, track.names, strict=True)):
        group = slot_group_of(int(slot))
        unit = group.units[int(slot) - group.start]
        limits = (0.0, 1.0) if group.kind == "gripper" else None
        values = track.unified[:, column].astype(np.float64)
        found[int(slot)] = Curve(name, unit, values, what, closed.get(name.partition("_")[0]), limits)
    return found


def _words(episode: Episode) -> list[tuple[int, str]]:
    """(first step, instruction) of each stretch of steps."""
    return [(0, episode.instruction), *episode.instruction_changes]


def _told(text: str) -> str:
    return html.escape(text) or "<span class=bad>no instruction</span>"


def _changes(episode: Episode) -> str:
    """Where which instruction begins, and marks there for the slider; nothing where it never changes."""
    if not episode.instruction_changes:
        return ""
    words = _words(episode)
    marks = "".join(f"<option value={step}>" for step, _ in words)
    places = "; ".join(f'<a href="#" data-step={step}>step {step}</a>: {_told(text)}' for step, text in words)
    return f"<p id=changes>{places}</p><datalist id=marks>{marks}</datalist>"


def _player(episode: Episode, frames: Thumbnails) -> str:
    images = "".join(
        f'<div><img data-camera="{html.escape(camera)}" alt=""><small>{html.escape(camera)}</small></div>'
        for camera in episode.cameras
    )
    return (
        f"<div id=player><div id=frames>{images or '<small>no cameras</small>'}</div><div id=bar><button "
        f"id=play>play</button><input id=step type=range list=marks min=0 max={max(len(episode) - 1, 0)} "
        "value=0><output id=where></output></div></div>"
    )


def _grid(rows: list[tuple[Curve | None, Curve | None]]) -> str:
    cells: list[str] = []
    number = 0
    for row in rows:
        for curve in row:
            cells.append("<div></div>" if curve is None else chart(curve, number))
            number += curve is not None
    key = (
        "<p class=key><small>unified units, base frame;<i style='background:#c30'></i>action<i "
        "style='background:#06c'></i>state<i style='background:#e9ddc4'></i>gripper commanded closed; click "
        "or drag in a curve to go to a step</small></p>"
    )
    head = "<div class=head>action</div><div class=head>state</div>"
    return f"<h2>Curves</h2>{key}<div class=grid>{head}{''.join(cells)}</div>"


def _facts(dataset: EpisodeDataset, number: int, episode: Episode, frames: Thumbnails) -> str:
    robot, lengths, rate_hz = dataset.embodiment, dataset.lengths, recorded_rate_hz(dataset)
    sizes = ", ".join(f"{camera} {size[0]} x {size[1]}" for camera, size in frames.sizes.items()) or "none"
    shown = f"at most {frames.width} pixels wide" + (
        f", every {frames.stride}th step" if frames.stride > 1 else ""
    )
    facts: dict[str, Any] = {
        "dataset": f"{dataset.name}: {len(dataset)} episodes, {int(lengths.sum())} steps",
        "folder": getattr(dataset, "path", ""),
        "split": getattr(dataset, "split", ""),
        "robot": f"{robot.name} ({robot.title}), {rate_hz:g} Hz",
        "this episode": f"number {number}, {len(episode)} steps, {len(episode) / rate_hz:.1f} s at that rate",
        "cameras (height x width)": f"{sizes}; shown {shown}",
        "further arrays": ", ".join(episode.extra_keys),
        **{f"metadata: {key}": value for key, value in episode.metadata.items()},
    }
    rows = "".join(
        f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in facts.items()
        if str(value)
    )
    details = f"<details><summary>embodiment</summary><pre>{html.escape(robot.to_text())}</pre></details>"
    entry = getattr(dataset, "entry", None)
    if entry is not None:
        text = html.escape(entry.model_dump_json(indent=2))
        summary = "<summary>entry: where the parts lie in the stored data</summary>"
        details += f"<details>{summary}<pre>{text}</pre></details>"
    return f"<h2>Facts</h2><table>{rows}</table>{details}"


def _numbers(values: np.ndarray) -> list[float | None]:
    """For JSON, which has no NaN; five digits of the largest are more than a curve shows."""
    largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    digits = 5 - int(np.ceil(np.log10(largest))) if largest > 0 else 0
    return [round(float(value), digits) + 0.0 if np.isfinite(value) else None for value in values]


def _json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
