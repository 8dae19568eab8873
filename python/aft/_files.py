"""Writing files whole."""

import os
import shutil


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file so that whoever opens `path` sees what was there before or all of `data`.

    A symbolic link is followed and the mode of a file that is there kept. It is written to `path` + ".tmp", synced and
    renamed; a write that fails leaves nothing of itself.
    """
    path = os.path.realpath(path)
    unfinished = path + ".tmp"
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            shutil.copymode(path, unfinished)
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
