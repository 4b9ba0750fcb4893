"""Templates: modules that are loaded and linked, waiting to be instantiated."""

from __future__ import annotations

from faas.wasm import capi


class Template:
    """A linked module, ready to be instantiated any number of times (``InstancePre``); lives until ``close``."""

    __slots__ = ("_module", "has_initialize", "pre", "slow")

    def __init__(self, pre: int, module: int) -> None:
        self.pre = pre
        self._module = module
        self.has_initialize: bool | None = None
        """Whether instances export ``_initialize``; found at the first one."""
        self.slow: dict[bytes, float] = {}
        """Functions that used up a time slice, and until when (``time.monotonic``) they are taken to do so again."""

    def close(self) -> None:
        """Free the code; instances that are alive keep what they use."""
        if self.pre:
            capi.instance_pre_delete(self.pre)
            capi.module_delete(self._module)
            self.pre = 0

    def __del__(self) -> None:
        self.close()
