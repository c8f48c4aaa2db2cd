"""What of a demo is done, kept in its folder: an interrupted one goes on there."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from hssl_nnunet.errors import HSSLError
from hssl_nnunet.files import read_json, write_json
from hssl_nnunet.typed_json import parse

JOURNAL = "demo.json"


class Journal:
    """What of a demo is done, and what it says: commands and results to the user, nnU-Net's many lines to a file.

    Attributes:
        console: the user's terminal.
        seconds: stage -> its wall time; kept in the demo's folder.
    """

    def __init__(self, out: Path, seconds: Mapping[str, float]):
        self.path, self.log = out / JOURNAL, out / "demo.log"
        self.seconds = dict(seconds)
        # keeps the terminal while standard output goes to the log; in a file rich would cut tables at 80
        self.console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False)

    def run(self, stage: str, command: str, action: Callable[[], object]) -> None:
        """Show a stage's command, and run it unless an earlier run has finished it."""
        self.console.print(f"\n[bold cyan]$ {escape(command)}[/]", soft_wrap=True)
        if stage in self.seconds:
            self.console.print(f"  finished by an earlier run, in {self.seconds[stage]:.0f} s")
            return
        start = time.monotonic()
        with self._to_log(command):
            action()
        self.seconds[stage] = time.monotonic() - start
        self.console.print(f"  {self.seconds[stage]:.0f} s")
        write_json(self.path, {"seconds": self.seconds})

    @contextmanager
    def _to_log(self, command: str) -> Iterator[None]:
        with self.log.open("a", buffering=1) as log, redirect_stdout(log):
            print(f"\n$ {command}")
            yield


@dataclass(frozen=True)
class Finished:
    """What a journal's file holds: the wall time of each stage that is done."""

    seconds: dict[str, float]


def open_journal(out: Path) -> Journal:
    """The journal of a demo's folder, a new one where there is none.

    Raises:
        HSSLError: the folder holds something else than a demo.
    """
    path = out / JOURNAL
    if path.is_file():
        remedy = "Begin anew in another folder: `hssl demo --out DIR`."
        return Journal(out, parse(Finished, read_json(path, remedy), path, remedy).seconds)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise HSSLError(f"{out} exists and is not a folder of `hssl demo`. Name another one with `--out DIR`.")
    write_json(path, {"seconds": {}})
    return Journal(out, {})
