"""The tests' side of `fork_server`."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from fork_server import Command, Result


class ForkServer:
    """Runs `lucid` commands one after the other, each in a fork of a process that has imported all of them."""

    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fork_server"],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, folder: object = ".", **surroundings: Any) -> Result:
        """Run `lucid ARGUMENTS` in a folder; `surroundings` are fields of `Command`."""
        command = Command([str(argument) for argument in arguments], os.path.abspath(str(folder)), **surroundings)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asdict(command)), file=self._process.stdin, flush=True)
        return Result(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()
