"""Model repositories of the Hugging Face hub: `hf:OWNER/NAME` as a folder to read, `--push-to-hub` a whole folder."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors import SafetensorError, safe_open

from semmae.errors import UserError, reason
from semmae.files import write_text
from semmae.formats.files import damaged_download
from semmae.formats.folders import CONFIG
from semmae.formats.table import WRITINGS
from semmae.names import shown
from semmae.progress import quiet
from semmae.shell import quoted

# What an export may consist of: of one in another form, pushed there before, nothing stays behind.
FILES = sorted({name for writing in WRITINGS.values() for name in writing.files})
CARD = "README.md"
_FACTS = (CONFIG, "preprocessor_config.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # most repositories hold both, of which one is enough
_ONCE = "download it once where the hub can be reached (its cache, HF_HOME, may be copied)"


def check_hub_name(name: str) -> None:
    """Refuse a name that no repository can have."""
    try:
        validate_repo_id(name)
    except ValueError as error:
        fault = f"no name for a repository ({reason(error)})"
        raise UserError(f"--push-to-hub {shown(name)}: {fault}; give OWNER/NAME") from error


@quiet("huggingface_hub")
def downloaded(name: str) -> Path:
    """The folder in the hub's cache with configuration and weights of a model, downloaded where they are not there yet.

    UserError where they are not to be had, or weights in the cache are damaged.
    """
    subject = shown(f"hf:{name}")
    try:
        for weights in _WEIGHTS:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_FACTS, weights]))
            if (folder / weights).is_file():
                break
    except Exception as error:
        # Every library on the way to the hub has exceptions of its own; all mean the same to the user.
        fault = f"{subject}: not at hand ({reason(error, 150)})"
        raise UserError(f"{fault}; check the name, {_ONCE}, or give a checkpoint file") from error
    _check_whole(subject, name, folder)
    return folder


def _check_whole(subject: str, name: str, folder: Path) -> None:
    """Refuse a folder without configuration or weights, whether the repository or just the cache lacks them."""
    found = [weights for weights in _WEIGHTS if (folder / weights).is_file()]
    lacks = ([] if (folder / CONFIG).is_file() else [CONFIG]) + ([] if found else [" or ".join(_WEIGHTS)])
    if lacks:
        fault = f"lacks {' and '.join(lacks)}"
        try:  # where the hub is out of reach, its library gives what is in the cache
            huggingface_hub.HfApi().list_repo_files(name)
        except Exception as error:
            raise UserError(f"{subject}: only a part of it is in the cache, {folder} {fault}; {_ONCE}") from error
        raise UserError(f"{subject}: {fault}; give a repository with a ViT")
    path = folder / found[0]
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt"):  # the header, and whether all of the file is there
                pass
        except SafetensorError as error:
            raise damaged_download(path, subject, error) from error


@quiet("huggingface_hub")
def push_to_hub(folder: Path, name: str, *, private: bool, message: str, card: Callable[[str], str]) -> str:
    """Upload a folder as one commit, making the repository where there is none; returns its address.

    The token is the environment's (HF_TOKEN), or that of `hf auth login`; a name without OWNER/ is its owner's. `card`
    makes the text of the model card of a repository's full name; it is written anew where `name` is not that.
    """
    try:
        api = huggingface_hub.HfApi()
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
        remedy = f"{folder} is whole: log in (hf auth login), then hf upload {name} {quoted(folder)}"
        raise UserError(f"--push-to-hub {name}: not uploaded ({reason(error, 300)}); {remedy}") from error
    return str(repository)
