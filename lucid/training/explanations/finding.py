"""What a rule finds in a curve."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something that the curve says: its name, the evidence in a sentence, and what to try, "" if all is well."""

    name: str
    evidence: str
    advice: str = ""

    @property
    def is_alarm(self) -> bool:
        """Whether something is wrong."""
        return bool(self.advice)

    def __str__(self) -> str:
        return f"{self.evidence}. {self.advice}." if self.advice else f"{self.evidence}."
