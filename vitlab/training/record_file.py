"""A file of records that stays readable when a disk is full."""

import pathlib


class RecordFile:
    """A file to which whole records are appended, each at once.

    Args:
        path: the file; made if it is not there.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._end = path.stat().st_size

    def append(self, record: bytes) -> None:
        """Appends one record.

        Raises:
            OSError: it could not be written. What there is of it goes before the next one comes.
        """
        self._file.truncate(self._end)
        rest = memoryview(record)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end += len(record)

    def close(self) -> None:
        """Closes the file; an OSError may tell here that it could not be written."""
        self._file.close()
