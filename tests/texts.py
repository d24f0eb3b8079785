"""Text for corpora of tests."""

import random

_SYLLABLES = ["ba", "co", "du", "fe", "gi", "ka", "lo", "mu", "ne", "pi", "ra", "so", "tu", "ve", "zi"]


def made_up_text(documents: int, seed: int, longest: int = 30) -> str:
    """Return documents of 1 to `longest` sentences, separated by blank lines."""
    draw = random.Random(seed)

    def sentence() -> str:
        words = ["".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))) for _ in range(draw.randint(2, 20))]
        return " ".join(words).capitalize() + "."

    return "\n\n".join(" ".join(sentence() for _ in range(draw.randint(1, longest))) for _ in range(documents))
