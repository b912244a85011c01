"""Settings of the tools of a tab: the values of its number boxes and check boxes, by the names of their attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qtpy.QtWidgets import QCheckBox, QDoubleSpinBox, QWidget

_PERSONAL = ("EditTab.at_once_box", "EditTab.overwrite_box")
"""Boxes that only a person at this window changes: with them, later edits replace labels without a question."""


def settings_of(owner: QWidget) -> dict[str, bool | float]:
    """Return the values of the boxes of a widget and of the widgets in it."""
    return {name: one.isChecked() if isinstance(one, QCheckBox) else one.value() for name, one in _boxes(owner)}


def set_settings(owner: QWidget, settings: Mapping[str, object]) -> None:
    """Set the boxes of a widget; names that it does not have, and values of another type, are ignored."""
    # a range that is set by hand is no longer automatic: numbers are set before check boxes
    for name, one in sorted(_boxes(owner), key=lambda pair: isinstance(pair[1], QCheckBox)):
        value = settings.get(name)
        if isinstance(one, QCheckBox):
            if isinstance(value, bool):
                one.setChecked(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12:
            one.setValue(value)


def _boxes(owner: QWidget) -> Iterator[tuple[str, QCheckBox | QDoubleSpinBox]]:
    for widget in (owner, *owner.findChildren(QWidget)):
        for name, one in vars(widget).items():
            if isinstance(one, QCheckBox | QDoubleSpinBox):
                full_name = f"{type(widget).__name__}.{name.strip('_')}"
                if full_name not in _PERSONAL:
                    yield full_name, one
