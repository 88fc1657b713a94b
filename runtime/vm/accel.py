"""Which acceleration a machine gets: KVM where a guest really boots with it, else emulation."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.runtime.vm.settings import Settings


def choose(settings: Settings) -> str:
    return "tcg" if settings.accel == "auto" else settings.accel
