"""What component host functions share: objects behind handles, errors that WIT declares, the shape of registries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from faas.errors import GuestTrapError


class WitError(Exception):
    """A host function's declared error: *value* becomes the ``err`` of the ``result`` it answers with."""

    def __init__(self, value: Any = None) -> None:
        super().__init__(value)
        self.value = value


class ComponentFunction(NamedTuple):
    """One function of a WIT interface, as Python: it gets the guest, then the parameters as Python values."""

    call: Callable[..., Any]
    may_suspend: bool = False
    """The callable may return an awaitable of its result instead of the result."""


class Resource:
    """
    What a guest's handle stands for; lives in the guest's table while the guest owns it.

    A parent can't be dropped, or given away, before its children, as the WIT documents of streams and bodies have it.
    """

    __slots__ = ("children", "parent")

    def __init__(self, parent: Resource | None = None) -> None:
        self.children = 0
        self.parent = parent
        if parent is not None:
            parent.children += 1

    def leave(self) -> None:
        """
        Stop being a child: the guest has dropped it, or handed it to the host.

        Raises: GuestTrapError if it has children itself.
        """
        if self.children:
            raise GuestTrapError(
                f"the guest dropped or gave away a handle ({type(self).__name__}) while it held"
                f" {self.children} that belong to it; drop those first"
            )
        parent, self.parent = self.parent, None
        if parent is not None:
            parent.children -= 1

    def drop(self) -> None:
        """
        End it: the guest has dropped its handle.

        Raises: GuestTrapError if it has children.
        """
        self.leave()
