"""HTML that no text can break out of: everything is escaped that is not :class:`Html` already."""

from __future__ import annotations

from html import escape

_EMPTY = {"img", "input", "rect"}


class Html(str):
    """Markup; every other string is text."""


Content = str | int | None


def tag(name: str, /, *content: Content, **attributes: str | int | bool | None) -> Html:
    """Return an element.

    Args:
        name: of the element.
        *content: text, which is escaped, or :class:`Html`; None is left out.
        **attributes: ``class_`` loses its underscore, inner ones become hyphens; True is an attribute without a
            value, False and None are none.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{given}/>" if name in _EMPTY else f"<{name}{given}>{join(*content)}</{name}>")


def join(*content: Content) -> Html:
    """Return contents one after another."""
    return Html("".join(part if isinstance(part, Html) else escape(str(part)) for part in content if part is not None))
