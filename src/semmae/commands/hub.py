"""`--push-to-hub`: a folder that is whole already, to a model repository of the Hugging Face hub."""

from pathlib import Path

from semmae.errors import UserError


def check_hub_name(name: str) -> None:
    """Refuse a name that no repository can have."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--push-to-hub {name}: no name for a repository ({reason}); give OWNER/NAME") from error


def push_to_hub(folder: Path, name: str, *, private: bool, message: str) -> str:
    """Upload a folder as one commit, making the repository where there is none; returns its address.

    The token is the environment's (HF_TOKEN), or that of `hf auth login`.

    Raises:
        UserError: it was not uploaded; the message tells why, and how to try again.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        repository = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:
        # Every library on the way to the hub has exceptions of its own; all mean the same to the user.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--push-to-hub {name}: not uploaded ({reason}); {folder} is whole: log in (hf auth login), then "
            f"hf upload {name} {folder}"
        ) from error
    return str(repository)
