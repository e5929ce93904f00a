"""Upload a bundle to the Hugging Face Hub: verified first, and with a model card the Hub can read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from vla_adapt.adaptation.bundle import Bundle
from vla_adapt.adaptation.bundle_manifest import MANIFEST, read_manifest
from vla_adapt.adaptation.front_matter import split_front_matter, with_front_matter

CARD = "README.md"
_HTTP_LIBRARIES = (
    "httpx",
    "httpx2",
    "requests",
)  # huggingface_hub's, by version; their errors share no class


@dataclass(frozen=True)
class PushPlan:
    """What goes up: file name -> its content, a path for what is unchanged, and the sizes in bytes."""

    robot: str
    repo_id: str
    files: dict[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(self.files.items())
        }


def plan_push(bundle_dir: str | Path, repo_id: str, base_model: str | None = None) -> PushPlan:
    """Verify a bundle and say what would be uploaded; needs no network.

    Only the files of the bundle's own manifest go up. The card gets `base_model` and the manifest its new
    checksum, so that what comes down is a valid bundle again; the folder here stays as it is.

    Args:
        bundle_dir: one bundle.
        repo_id: `owner/name` on the Hub.
        base_model: repository of the base, e.g. `openvla/openvla-7b`; None leaves it out of the card.

    Raises:
        ValueError: a damaged bundle, or a malformed repository name.
    """
    for what, name in (("REPO_ID", repo_id), ("--base-model", base_model)):
        if name is not None:
            _check_name(what, name)
    folder = Path(bundle_dir)
    bundle = Bundle.load(folder)
    manifest = read_manifest(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in manifest["files"]}
    card = hub_card(bundle.card, bundle.robot, base_model).encode()
    manifest["files"][CARD] = sha256(card).hexdigest()
    files[CARD] = card
    files[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    return PushPlan(bundle.robot, repo_id, files)


def push(plan: PushPlan, private: bool = False, endpoint: str | None = None, token: str | None = None) -> str:
    """Create the repository where it is missing, upload in one commit, and return the commit's URL.

    Args:
        plan: of `plan_push`.
        private: make a new repository private; an existing one stays as it is.
        endpoint: the Hub; None takes huggingface_hub's own (`HF_ENDPOINT`).
        token: None takes the one huggingface_hub is logged in with (`hf auth login` or `HF_TOKEN`).

    Raises:
        ValueError: not logged in, no right to write there, or the Hub cannot be reached.
    """
    api = HfApi(endpoint=endpoint, token=token)
    operations = [CommitOperationAdd(name, content) for name, content in sorted(plan.files.items())]
    try:
        api.create_repo(plan.repo_id, private=private or None, exist_ok=True, repo_type="model")
        commit = api.create_commit(
            plan.repo_id, operations, commit_message=f"Upload the bundle of {plan.robot}", repo_type="model"
        )
    except LocalTokenNotFoundError:
        raise ValueError(
            "not logged in to the Hugging Face Hub; run `hf auth login` or set HF_TOKEN"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = "check the token and that it may write there" if status in (401, 403) else "try again later"
        raise ValueError(f"the Hub refused {plan.repo_id} ({_first_line(error)}); {advice}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _HTTP_LIBRARIES:
            raise
        raise ValueError(f"cannot reach the Hub at {api.endpoint} ({_first_line(error)})") from error
    return str(commit.commit_url)


def hub_card(card: str, robot: str, base_model: str | None) -> str:
    """The card with front matter the Hub reads: library, pipeline, tags, and the base where it is known.

    Fields the card already has are kept; a license is never made up.
    """
    fields, text = split_front_matter(card, CARD)
    tags = [*fields.pop("tags", []), "vla_adapt", "openvla", "robotics", "lora", robot]
    if base_model is not None:
        fields |= {"base_model": base_model, "base_model_relation": "adapter"}
    return with_front_matter(fields, tags, text)


def _check_name(what: str, name: str) -> None:
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{what} {name!r} is no repository name: {_first_line(error)}") from None
    if name.count("/") != 1:
        raise ValueError(f"{what} {name!r} is no repository name; wanted owner/name")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
