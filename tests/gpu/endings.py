"""How processes end that do what a GPU would not survive."""

import faulthandler
import os


def ending_of(action):
    """Return what ends a process that does this."""
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return -os.waitstatus_to_exitcode(status)
