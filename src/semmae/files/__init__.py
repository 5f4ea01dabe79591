"""Files and folders: the one way in which everything is written, and the one reader of each form.

Notable here:
- a file or folder is written beside its place and moved there whole: a reader sees the old one or the new one, and
  where writing fails or is stopped, nothing of the new one stays;
- nothing is written into the folder of a run that was removed or replaced while the run lasts (`guarded`);
- what lies beside its place bears a suffix of our own: `sweep` removes what a killed process left, and nothing else;
- a reader takes regular files of a bounded size only: a FIFO, a device, a file of gigabytes or one nested a thousand
  deep is refused in one line, as is one in another encoding or of another form;
- names that are no UTF-8 (Python's surrogate escapes) are written as the bytes they are, in JSON as escapes.
"""

from semmae.files.reading import (
    Fields as Fields,
    file_digest as file_digest,
    open_regular as open_regular,
    parse_json as parse_json,
    read_bytes as read_bytes,
    read_csv as read_csv,
    read_json as read_json,
    read_json_value as read_json_value,
    read_numbered as read_numbered,
    read_records as read_records,
    read_text as read_text,
)
from semmae.files.writing import (
    PART as PART,
    check_guarded as check_guarded,
    check_replaceable as check_replaceable,
    discard as discard,
    explained as explained,
    guarded as guarded,
    is_disk_fault as is_disk_fault,
    is_part as is_part,
    make_folder as make_folder,
    move_into_place as move_into_place,
    name_beside as name_beside,
    remove as remove,
    reserve as reserve,
    sweep as sweep,
    sweep_beside as sweep_beside,
    whole as whole,
    whole_folder as whole_folder,
    write_bytes as write_bytes,
    write_csv as write_csv,
    write_json as write_json,
    write_text as write_text,
)
