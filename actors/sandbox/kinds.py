"""The sandboxes that a recipe can name, with their options.

A new one is a file with its class, and its options in the union.
"""

from typing import Annotated, Literal

from pydantic import Field

from actors.sandbox.local import LocalSandbox
from actors.sandbox.program import Sandbox
from moments_service.config import BY_NAME, StrictModel


class NamespaceSandbox(StrictModel):
    """Namespaces, a root of its own, seccomp and limits, by the kernel of this machine."""

    kind: Literal["namespaces"] = "namespaces"

    def open(self) -> Sandbox:
        return LocalSandbox()


class NoSandbox(StrictModel):
    """No sandbox: a program has all rights of the process that judges it. For machines that are nothing but a sandbox themselves."""

    kind: Literal["none"] = "none"

    def open(self) -> Sandbox:
        return LocalSandbox(isolated=False)


AnySandbox = Annotated[Annotated[NamespaceSandbox | NoSandbox, Field(discriminator="kind")], BY_NAME]
