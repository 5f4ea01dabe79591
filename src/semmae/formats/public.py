"""The public encoder that `--teacher auto` stands for, where it is to be had: in the Hugging Face cache, or on the hub.

Somebody offline is answered within seconds: what lies in the cache is taken without a look at the hub, and the hub is
asked once, for the size of the weights, before anything is downloaded.
"""

import logging
import queue
import threading

import huggingface_hub
from huggingface_hub import constants

from semmae.errors import UserError, reason
from semmae.formats.folders import WEIGHTS
from semmae.formats.timm import cached
from semmae.names import bytes_shown
from semmae.options.shared import AUTO_TEACHER, OWN_TEACHER, PUBLIC_TEACHER
from semmae.progress import quiet

SECONDS = 5.0  # that the hub has to answer
_NAME = PUBLIC_TEACHER.removeprefix("timm:")
_CACHE = "the cache (HF_HOME) of a machine where it was used once"

_LOG = logging.getLogger("semmae")


def public_teacher(asked: str, *, or_own: bool, remedy: str = "") -> str:
    """What `asked`, "auto" or its public encoder by name, becomes: that, its weights in the cache, or "own".

    `or_own`: whether "auto" may become "own", which is warned of. Else UserError where the weights are not to be had,
    with the verb's own `remedy` first.
    """
    fault = why_not()
    if fault is None:
        if asked == AUTO_TEACHER:
            _LOG.info(
                "--teacher auto: %s (DINOv2 small, 88 MB), a public encoder; own for one trained here", PUBLIC_TEACHER
            )
        return PUBLIC_TEACHER
    subject = f"{PUBLIC_TEACHER} is " if asked == AUTO_TEACHER else ""
    said = f"--teacher {asked}: {subject}not at hand ({fault})"
    if or_own and asked == AUTO_TEACHER:
        _LOG.warning(
            "%s: a teacher is trained on these images first, which can take longer than all the rest "
            "(--teacher-epochs), and its parts are poor where images are few; for the public one, copy %s, or give "
            "--teacher FILE",
            said, _CACHE,
        )  # fmt: skip
        return OWN_TEACHER
    instead = "give" if asked == AUTO_TEACHER else "begin another run with"  # a resumed one keeps its teacher
    raise UserError(f"{said}; {remedy}copy {_CACHE}, or {instead} --teacher FILE")


@quiet("huggingface_hub")
def why_not() -> str | None:
    """Why the weights are not to be had; None where they lie in the cache, downloaded if need be."""
    if cached(_NAME):
        return None
    if constants.HF_HUB_OFFLINE:
        return f"HF_HUB_OFFLINE is set, and it is not in {constants.HF_HUB_CACHE}"
    try:
        size = bytes_shown(_size())
        _LOG.info("downloading %s (%s) once, into %s", PUBLIC_TEACHER, size, constants.HF_HUB_CACHE)
        huggingface_hub.hf_hub_download(f"timm/{_NAME}", WEIGHTS)
    except Exception as error:
        # Every library on the way to the hub has exceptions of its own; all mean the same to the user.
        return reason(error, 150)
    return None


def _size() -> int:
    """Bytes of the weights on the hub, asked in a thread: a name server that is silent heeds no time limit of ours."""
    answers: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(f"timm/{_NAME}", WEIGHTS)
            answers.put(huggingface_hub.get_hf_file_metadata(url, timeout=SECONDS).size or 0)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=SECONDS)
    except queue.Empty:
        raise TimeoutError(f"the hub did not answer within {SECONDS:g} seconds") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
