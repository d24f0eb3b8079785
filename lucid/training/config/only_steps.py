"""Settings for taking the steps of a run without what a run does besides."""

from lucid.training.config.run_config import RunConfig

# More steps than any run takes.
NEVER = 2**30


def only_steps(config: RunConfig, *, keeps_log: bool = False) -> RunConfig:
    """Return settings of a run that takes the same steps and evaluates, saves, checks and reports nothing.

    With `keeps_log` it has the same lines of the log about its steps.
    """
    fields = type(config.train).model_fields
    periodic = {name for name in fields if name.endswith("_every")} - ({"log_every"} if keeps_log else set())
    never = {name: None if fields[name].default is None else NEVER for name in periodic}
    others = {
        "evaluate_also": (),
        "keep_best": False,
        "patience": None,
        "probe": (),
        "trace": None,
        "tensorboard": False,
    }
    train = config.train.model_copy(update={**never, **others})
    return config.model_copy(update={"train": train})
