"""A captured graph: what was recorded, done again in place, on the memory that it was recorded on."""

from typing import Any

from cupy import _errors, emulation


class Graph:
    """What a capture recorded. `launch` does it once more."""

    def __init__(self, capture: emulation.Capture) -> None:
        self._operations, self._kept = capture.operations, capture.kept
        self._used = list(capture.used.values())

    def launch(self, stream: Any = None) -> None:
        if any(memory() is None for memory in self._used):
            raise _errors.illegal_address("a graph was launched after memory that it uses had been freed")
        emulation.graph_launches += 1
        stream = emulation.stream_of(stream)
        emulation.submit(lambda: self._run(stream), stream)

    def upload(self, stream: Any = None) -> None:
        """Nothing has to be made ready."""

    def _run(self, stream: Any) -> None:
        with emulation.launched_on(stream):
            for operation in self._operations:
                operation()
