"""Push a folder to the Hugging Face hub, by huggingface_hub: its repository is made where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mhr.errors import ConfigError, MhrError


def check_push(repo: str) -> None:
    """Raise ConfigError for a name that is no OWNER/NAME, MhrError where nothing can be pushed from here: without asking the network."""
    try:
        validate_repo_id(repo)
    except HFValidationError as fault:
        raise ConfigError(f"push is {repo!r}, expected OWNER/NAME on the hub: {_line(fault)}") from None
    if "/" not in repo:
        raise ConfigError(f"push is {repo!r}, expected OWNER/NAME on the hub, such as your-name/{repo}")
    if constants.HF_HUB_OFFLINE:
        raise MhrError("nothing can be pushed while HF_HUB_OFFLINE is set: unset it, or leave --push out")
    if get_token() is None:
        raise MhrError(
            "no token of the hub is here to push with: log in (hf auth login), set HF_TOKEN, or leave --push out"
        )


def push_folder(folder: str | Path, repo: str, *, public: bool = False, without: Sequence[str] = ()) -> str:
    """Upload what a folder holds to the model repository `repo` (OWNER/NAME), in one commit; returns its address.

    A repository that is made for it is private unless `public`; one that is there stays as it is. without: names of files that stay
    here. Raises what `check_push` does, and MhrError where the hub refuses or cannot be reached; the folder is only read.
    """
    check_push(repo)
    api = HfApi(library_name="mhr")
    try:
        made = api.create_repo(repo, private=not public, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type="model",
            commit_message="Written by mhr",
            ignore_patterns=list(without) or None,
        )
    except (
        Exception
    ) as fault:  # the client's HTTP library, whose errors these are, is not the same in all of its versions
        again = f"hf upload {repo} {folder}"
        raise MhrError(
            f"{folder} is written, but could not be pushed to {repo}: {_line(fault)}; try again with {again}"
        ) from fault
    return str(made)


def _line(fault: Exception) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(fault).__name__
