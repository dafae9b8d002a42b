"""An export goes to the hub."""

from pathlib import Path

from httpx2 import HTTPError
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from safetydpo.errors import SafetyDPOError
from safetydpo.export.folder import NOT_OURS


def refuse_push(repo: str) -> None:
    """SafetyDPOError where nothing could be uploaded: no token, or no name of a repository."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise SafetyDPOError(f"--push {repo} is no name of a repository on the hub: give USER/NAME.") from None
    if get_token() is None:
        raise SafetyDPOError("--push needs a token of the hub: set HF_TOKEN, or call `hf auth login`.")


def push(folder: Path, repo: str, api: HfApi | None = None) -> str:
    """Upload a folder, in one commit, to a repository that is made where there is none, private; its address."""
    api = api or HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=list(NOT_OURS), commit_message="Export of safetydpo"
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise SafetyDPOError(
            f"{folder} was not uploaded to {repo} ({reason}): mend that, then `hf upload {repo} {folder}` is enough."
        ) from None
    return str(commit.repo_url)
