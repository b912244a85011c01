"""Define the exception for all errors of this bundle that a user can cause."""

from __future__ import annotations


class TrainingError(Exception):
    """Report what was found, what was expected and what to do; `str(error)` is "code: message".

    Args:
        code: stable code of the error, e.g. "split.too_few".
        message: text for the user.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
