"""TensorBoard's event files, written by tensorboardX's messages but not by its `SummaryWriter`.

That one hands every event to a thread, which a full disk ends; its queue then blocks for ever.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

from vitlab.training.record_file import RecordFile


class EventFile:
    """A new event file, whose events are on disk as soon as they are written.

    Args:
        directory: what TensorBoard is given; made if it is not there.
        purge_step: TensorBoard drops the events of this step and later ones that earlier files
            hold.

    Raises:
        OSError: the file cannot be made; from `scalars`, `text` and `close`: it cannot be written.
    """

    def __init__(self, directory: pathlib.Path, purge_step: int):
        from tensorboardX import summary  # not at the top: it takes half a second
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import masked_crc32c

        self._event, self._summary, self._checksum = Event, summary, masked_crc32c
        directory.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self.path = directory / name
        self._file = RecordFile(self.path)
        # Written with the first event, as there may be no room now.
        start = SessionLog(status=SessionLog.START)
        self._head = self._framed(file_version="brain.Event:2")
        self._head += self._framed(step=purge_step, session_log=start)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends numbers by their names."""
        for name, value in values.items():
            self._append(step, self._summary.scalar(name, value))

    def text(self, step: int, name: str, text: str) -> None:
        """Appends a text."""
        self._append(step, self._summary.text(name, text))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _append(self, step: int, summary: Any) -> None:
        self._file.append(self._head + self._framed(step=step, summary=summary))
        self._head = b""

    def _framed(self, **fields: Any) -> bytes:
        """An event as a TFRecord: length and data, each with its checksum."""
        data = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", self._checksum(x)) for x in (length, data))
        return length + next(sums) + data + next(sums)
