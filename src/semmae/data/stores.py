"""What stores at addresses say and give, by fsspec: their files by pattern, sizes and versions, small files."""

import hashlib
import re
from typing import Any

from semmae.errors import UserError, escaped, reason

_SILENCE = 60.0  # seconds in which a server has to send something; what it sends may take as long as it likes
# What stores say of a file that is another when its content is, in the letters that are left of the names. The first
# one that is there counts alone: stores may give the time of a file more finely in a list than of that file by itself.
_VERSIONS = ("contentmd5", "md5hash", "md5", "blobid", "etag", "lastmodified", "updated", "mtime", "created")
_NO_STAR = re.compile(r"[\[?]")  # what a pattern would take for more than a letter


def named(place: str) -> str:
    """A path or an address as a message shows it: its end is what distinguishes shards."""
    place = escaped(place)
    return place if len(place) <= 255 else f"{place[:77]}…{place[-77:]}"


def read_beside(root: str, name: str) -> bytes | None:
    """The bytes of a small file in the folder of remote shards; None where there is none."""
    try:
        files, path = file_system(root + name)
        content: bytes = files.cat_file(path)
    except (FileNotFoundError, PermissionError):  # a store may say either, where its files are not to be listed
        return None
    except Exception as error:  # stores, networks and their libraries have no common type
        raise unreadable(root + name, error) from error
    return content


def list_anew(address: str) -> None:
    """Forget what was listed in this process before: it may have changed since. UserError where nothing reads this."""
    try:
        file_system(address)[0].invalidate_cache()
    except Exception as error:  # as in `read_beside`
        raise unreadable(address, error) from error


def matching(pattern: str, data: str) -> list[str]:
    """The addresses that a pattern stands for, in their order; without `*` it is one itself, there or not."""
    if "*" not in pattern:
        return [pattern]
    try:
        files, inside = file_system(pattern)
        every = files.glob(_NO_STAR.sub(r"[\g<0>]", inside), detail=True)
        files_alone = sorted(path for path, facts in every.items() if facts.get("type") != "directory")
        found = [str(files.unstrip_protocol(path)) for path in files_alone]
    except Exception as error:
        raise unreadable(data, error) from error
    if not found:
        remedy = "check the address, and your rights there"
        raise UserError(f"{named(data)}: no tar shards found at this address; {remedy}")
    return found


def facts_of(address: str) -> tuple[int, int] | None:
    """As `said`; None where there is no such file. UserError where it cannot be asked for."""
    try:
        return said(address)
    except UserError:
        raise
    except Exception as error:
        # Over HTTP everything that fails is "not found", and why is said behind it.
        cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
        if cause is None or getattr(cause, "status", None) in (404, 410):
            return None
        raise unreadable(address, cause) from error


def said(address: str, anew: bool = False) -> tuple[int, int]:
    """Size, and a number that is another one when the content is; `anew`: not of what was listed before."""
    files, inside = file_system(address)
    if anew:
        files.invalidate_cache(inside)
    found = files.info(inside)
    if found.get("type") == "directory":
        raise UserError(f"{named(address)}: is a folder; for the shards in it give it with a slash at its end")
    size = found.get("size")
    if not isinstance(size, int):
        raise UserError(f"{named(address)}: does not say how many bytes it holds; download it and give its folder")
    known = {"".join(filter(str.isalnum, name)).lower(): value for name, value in found.items()}
    version = next((str(known[name]).strip('"') for name in _VERSIONS if known.get(name)), "")
    return size, int.from_bytes(hashlib.blake2b(version.encode(), digest_size=8).digest(), "little", signed=True)


def file_system(address: str) -> tuple[Any, str]:
    """What reads an address, and what the address is called there. Asked for anew: none outlives a fork."""
    import fsspec

    settings = {"get_client": _patient_client} if address.startswith(("http://", "https://")) else {}
    files, inside = fsspec.core.url_to_fs(address, **settings)
    return files, inside


async def _patient_client(**given: Any) -> Any:
    """Of a server, for files of any size: by itself it gives one up after five minutes, however much has come."""
    from aiohttp import ClientSession, ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return ClientSession(**{"timeout": timeout, **given})


def unreadable(address: str, error: BaseException) -> UserError:
    """In one line, with what may help."""
    remedy = "check the address, the network, and your rights there"
    if isinstance(error, ImportError):
        remedy = 'pip install "semmae[remote]", for s3:// and gs:// also s3fs and gcsfs'
    elif isinstance(error, ValueError) and "rotocol" in str(error):
        remedy = "give one of s3://, gs://, hf://, https://"
    return UserError(f"{named(address)}: cannot be read: {reason(error, 200)}; {remedy}")
