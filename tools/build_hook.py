"""Called by hatchling: the stub of the verbs' Python calls is written when the package is built, and not committed."""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class StubHook(BuildHookInterface):  # type: ignore[type-arg]
    """Writes src/semmae/calls.pyi before a wheel, an editable one too, is made."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files are collected."""
        stub = runpy.run_path(str(Path(self.root) / "tools" / "stub.py"))
        stub["PATH"].write_text(stub["stub"](), encoding="utf-8")
