"""The form of what a plan prints."""

# A line of the plan: its subject and its text. A line without a subject continues the one before.
Line = tuple[str, str]
