"""The errors that CUDA's runtime and driver give, under CuPy's names."""


class CUDARuntimeError(RuntimeError):
    """What a call of CUDA's runtime returned, other than success."""

    def __init__(self, status: int, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.status = status


class CUDADriverError(RuntimeError):
    """What a call of CUDA's driver returned, other than success."""


def unsupported(what: str) -> CUDARuntimeError:
    return CUDARuntimeError(900, "cudaErrorStreamCaptureUnsupported", f"not permitted when stream is capturing: {what}")


def unjoined(what: str) -> CUDARuntimeError:
    return CUDARuntimeError(904, "cudaErrorStreamCaptureUnjoined", what)


def isolated(what: str) -> CUDARuntimeError:
    return CUDARuntimeError(905, "cudaErrorStreamCaptureIsolation", what)


def captured_event(what: str) -> CUDARuntimeError:
    return CUDARuntimeError(907, "cudaErrorCapturedEvent", f"operation not permitted on an event last recorded in a "
                            f"capturing stream: {what}")  # fmt: skip


def illegal_address(what: str) -> CUDARuntimeError:
    return CUDARuntimeError(700, "cudaErrorIllegalAddress", f"an illegal memory access was encountered: {what}")


def invalid(what: str) -> CUDARuntimeError:
    return CUDARuntimeError(1, "cudaErrorInvalidValue", f"invalid argument: {what}")
