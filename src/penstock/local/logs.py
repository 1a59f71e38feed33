"""Where the parts of local mode write: files of a folder, or the terminal with the part's name before each line."""

import asyncio
import os
from pathlib import Path

from penstock.errors import ConfigError
from penstock.local.report import Report


class Logs:
    """One descriptor per part, for stdout and stderr of every process that part ever is."""

    def __init__(self, folder: str, report: Report) -> None:
        self._folder = Path(folder) if folder else None
        self._report = report
        self._descriptors: dict[str, int] = {}
        if self._folder:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--log-dir {folder} cannot be made: {error.strerror}") from error

    async def open(self, name: str) -> int:
        """The descriptor that part `name` writes to."""
        if name not in self._descriptors:
            if self._folder:
                path = self._folder / f"{name}.log"
                self._descriptors[name] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            else:
                self._descriptors[name] = await self._open_pipe(name)
        return self._descriptors[name]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    async def _open_pipe(self, name: str) -> int:
        reading, writing = os.pipe()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: _Lines(name, self._report), os.fdopen(reading, "rb", buffering=0))
        return writing


class _Lines(asyncio.Protocol):
    def __init__(self, name: str, report: Report) -> None:
        self._name = name
        self._report = report
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            text = line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]  # a progress bar's last state
            if text.strip():
                self._report.log(self._name, text)
