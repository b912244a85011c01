"""The one exception of this bundle that a user can cause."""

from __future__ import annotations


class TrainingError(Exception):
    """Says what was found, what was expected and what to do; `str(error)` is "code: message".

    Args:
        code: stable name of the fault, e.g. "split.too_few".
        message: for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
