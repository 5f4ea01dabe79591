"""Files and folders: the one way in which everything is written, and the one reader of each form.

Notable here:
- a file or folder is written beside its place and moved there whole: a reader sees the old one or the new one, and
  when the block fails, the disk is full or the process is stopped by a signal, nothing of the new one stays;
- what lies beside its place bears a suffix that nobody else uses, so that `sweep` can remove what a killed process
  left, and nothing of the user's;
- a reader takes regular files of a bounded size only: a FIFO, a device, a file of gigabytes or one nested a thousand
  deep is refused in one line, as is one in another encoding or of another form;
- names that are no UTF-8 (Python's surrogate escapes) are written as the bytes they are, in JSON as escapes.
"""

from semmae.files.names import bytes_shown, encoded, on_disk, readable, short, shown, user_path
from semmae.files.reading import (
    MOST_TEXT,
    Fields,
    open_regular,
    parse_json,
    read_bytes,
    read_csv,
    read_json,
    read_json_value,
    read_numbered,
    read_records,
    read_text,
)
from semmae.files.writing import (
    PART,
    check_replaceable,
    is_disk_fault,
    is_part,
    make_folder,
    remove,
    reserve,
    sweep,
    sweep_beside,
    whole,
    whole_folder,
    write_bytes,
    write_csv,
    write_json,
    write_text,
)

__all__ = [
    "Fields",
    "MOST_TEXT",
    "PART",
    "bytes_shown",
    "check_replaceable",
    "encoded",
    "is_disk_fault",
    "is_part",
    "make_folder",
    "on_disk",
    "parse_json",
    "open_regular",
    "read_bytes",
    "read_csv",
    "read_json",
    "read_json_value",
    "read_numbered",
    "read_records",
    "read_text",
    "readable",
    "remove",
    "reserve",
    "short",
    "shown",
    "sweep",
    "sweep_beside",
    "user_path",
    "whole",
    "whole_folder",
    "write_bytes",
    "write_csv",
    "write_json",
    "write_text",
]
