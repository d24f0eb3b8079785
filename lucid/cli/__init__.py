"""The command line: `lucid COMMAND ...`. One file a command; what they share is in `app`."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command (by default the process's arguments) and leave with its exit code.

    `lucid launch` is run without the other commands' libraries, so that it starts in milliseconds.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--"]:  # it ends options, of which there are none before it
        del given[0]
    if given[:1] == ["launch"]:
        from lucid.cli import launch

        sys.exit(launch.run(given[1:]))
    if arguments is None:
        from lucid.launch.placement import take_share
        from lucid.launch.processes import end_with_launcher

        end_with_launcher()
        take_share(os.environ)
    from lucid.cli import app

    sys.exit(app.run(given))
