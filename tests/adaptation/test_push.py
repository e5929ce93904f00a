"""Uploading: the dry plan, the card's front matter, and a local stand-in for the Hub's HTTP interface."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.push import hub_card, plan_push, push

REPO = "me/openvla-panda"


class FakeHub(BaseHTTPRequestHandler):
    """What create_repo and create_commit ask for, every file sent inline; anything else is a 404."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        state = self.server.state  # type: ignore[attr-defined]
        if self.headers.get("Authorization") != "Bearer good":
            self._answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            state.created.append(json.loads(body))
            self._answer(200, {"url": f"{state.url}/{REPO}"})
        elif self.path == "/api/validate-yaml":
            fields = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self._answer(200, {"errors": [], "warnings": []} if "tags" in fields else {"errors": ["tags"]})
        elif self.path == f"/api/models/{REPO}/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            regular = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self._answer(200, {"files": regular})
        elif self.path == f"/api/models/{REPO}/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            state.commits.append(lines[0]["value"]["summary"])
            for line in lines[1:]:
                state.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = f"{state.url}/{REPO}/commit/abc"
            self._answer(200, {"success": True, "commitOid": "abc", "commitUrl": commit, "hookOutput": ""})
        else:
            self._answer(404, {"error": f"no {self.path}"})

    def _answer(self, status: int, tree: dict) -> None:
        body = json.dumps(tree).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def hub() -> Iterator[SimpleNamespace]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    state = SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_address[1]}", created=[], commits=[], files={}
    )
    server.state = state  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


def test_what_is_uploaded_is_a_valid_bundle(tiny_bundle: Path, hub: SimpleNamespace, tmp_path: Path):
    plan = plan_push(tiny_bundle, REPO, base_model="openvla/openvla-7b")
    assert push(plan, private=True, endpoint=hub.url, token="good") == f"{hub.url}/{REPO}/commit/abc"
    assert hub.created[0]["name"] == "openvla-panda"
    assert hub.created[0]["organization"] == "me"
    assert "private" in json.dumps(hub.created[0])  # huggingface_hub has moved the field between versions
    assert hub.commits == ["Upload the bundle of franka_panda"]
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    there = Bundle.load(tmp_path)  # checks every checksum
    assert "base_model: openvla/openvla-7b" in there.card
    assert hub.files["adapter_model.safetensors"] == (tiny_bundle / "adapter_model.safetensors").read_bytes()
    assert "base_model" not in (tiny_bundle / "README.md").read_text()


def test_the_plan_lists_the_manifests_files_only(tiny_bundle: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    (folder / "secret.txt").write_text("not part of it")
    plan = plan_push(folder, REPO)
    assert sorted(plan.sizes) == sorted(path.name for path in tiny_bundle.iterdir())
    assert plan.sizes["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").stat().st_size
    assert plan.sizes["README.md"] == len(plan.files["README.md"])  # type: ignore[arg-type]


def test_a_damaged_bundle_or_a_bad_name_is_refused(tiny_bundle: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "b"))
    (folder / "statistics.json").write_text("{}")
    with pytest.raises(ValueError, match=r"statistics\.json was changed or damaged"):
        plan_push(folder, REPO)
    for name in ("panda", "a/b/c", "me/pan da", "me/..x"):
        with pytest.raises(ValueError, match=r"REPO_ID .* is no repository name"):
            plan_push(tiny_bundle, name)
    with pytest.raises(ValueError, match=r"--base-model .* is no repository name"):
        plan_push(tiny_bundle, REPO, base_model="./runs/base")


def test_refusals_of_the_hub_are_one_line(tiny_bundle: Path, hub: SimpleNamespace):
    plan = plan_push(tiny_bundle, REPO)
    with pytest.raises(ValueError, match=r"the Hub refused me/openvla-panda .*check the token") as refusal:
        push(plan, endpoint=hub.url, token="bad")
    assert "\n" not in str(refusal.value)
    other = plan_push(tiny_bundle, "you/elsewhere")
    with pytest.raises(ValueError, match=r"the Hub refused you/elsewhere .*try again later"):
        push(other, endpoint=hub.url, token="good")
    with pytest.raises(ValueError, match=r"cannot reach the Hub at http://127\.0\.0\.1:9"):
        push(plan, endpoint="http://127.0.0.1:9", token="good")


def test_front_matter_keeps_what_is_there_and_makes_up_no_license():
    card = "---\nlicense: mit\ntags: [mine, robotics]\n---\n\n# Title\n"
    text = hub_card(card, "ur5e", "me/base")
    head, body = text.removeprefix("---\n").split("\n---\n")
    assert yaml.safe_load(head) == {
        "license": "mit",
        "library_name": "peft",
        "pipeline_tag": "robotics",
        "base_model": "me/base",
        "base_model_relation": "adapter",
        "tags": ["mine", "robotics", "vla_adapt", "openvla", "lora", "ur5e"],
    }
    assert body.strip() == "# Title"
    bare = yaml.safe_load(hub_card("# Title\n", "ur5e", None).split("---\n")[1])
    assert bare.keys() == {"library_name", "pipeline_tag", "tags"}
    assert hub_card(text, "ur5e", "me/base") == text
    with pytest.raises(ValueError, match="not valid YAML"):
        hub_card("---\na: [\n---\n", "ur5e", None)
