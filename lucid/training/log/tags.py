"""Names of metrics for TensorBoard and other services, which show them in groups by what is before the first `/`."""

# Keys of the log that are groups already.
_GROUPS = ("gradient_norm", "update_ratio", "probe")


def tag_of(key: str) -> str:
    """Return the name for a key of the log, such as `loss/mlm_loss`, `waits/data_wait` or `gradient_norm/all`."""
    name, slash, _ = key.partition("/")
    if name in _GROUPS:
        return key if slash else f"{key}/all"
    return f"{_group_of(name)}/{key}"


def _group_of(name: str) -> str:
    if name.endswith(("loss", "perplexity")):
        return "loss"
    if name.endswith("accuracy"):
        return "accuracy"
    if name.endswith("_per_second"):
        return "speed"
    if "_wait" in name or name.startswith("slowest_rank"):
        return "waits"
    return "progress"
