"""`--push-to-hub`: a folder that is whole already, to a model repository of the Hugging Face hub."""

from collections.abc import Callable
from pathlib import Path

from semmae.errors import UserError
from semmae.files import write_text
from semmae.formats.table import WRITINGS
from semmae.shell import quoted

# What an export may consist of: of one in another form, pushed there before, nothing stays behind.
FILES = sorted({name for writing in WRITINGS.values() for name in writing.files})
CARD = "README.md"


def check_hub_name(name: str) -> None:
    """Refuse a name that no repository can have."""
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--push-to-hub {name}: no name for a repository ({reason}); give OWNER/NAME") from error


def push_to_hub(folder: Path, name: str, *, private: bool, message: str, card: Callable[[str], str]) -> str:
    """Upload a folder as one commit, making the repository where there is none; returns its address.

    The token is the environment's (HF_TOKEN), or that of `hf auth login`; a name without OWNER/ is its owner's. `card`
    makes the text of the model card of a repository's full name; it is written anew where `name` is not that.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        repository = api.create_repo(name, private=private or None, exist_ok=True)
        place = repository.repo_id
        if private and not api.repo_info(place).private:
            raise UserError(
                f"--private: {place} is there already, and public; nothing was uploaded, {folder} is whole: leave "
                "--private out, or make the repository private in its settings"
            )
        if place != name:
            write_text(folder / CARD, card(place))
        api.upload_folder(repo_id=place, folder_path=folder, commit_message=message, delete_patterns=FILES)
    except UserError:
        raise
    except Exception as error:
        # Every library on the way to the hub has exceptions of its own; all mean the same to the user.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--push-to-hub {name}: not uploaded ({reason}); {folder} is whole: log in (hf auth login), then "
            f"hf upload {name} {quoted(folder)}"
        ) from error
    return str(repository)
