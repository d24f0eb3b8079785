"""Numbers as users read them."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def quantity(number: float, unit: str) -> str:
    """Return three digits of a number, with the decimal prefix of its unit: 16.8 GFLOP/s."""
    power = 0
    while number >= 999.5 and power < len(_PREFIXES) - 1:
        number, power = number / 1000, power + 1
    return f"{number:,.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {_PREFIXES[power]}{unit}"


def count(number: int, noun: str) -> str:
    """Return a number of things, the noun in singular or plural: 1 step, 1,800 steps."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Return a duration in its unit: 88 seconds, 2.5 hours."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return count(round(seconds), "second")
