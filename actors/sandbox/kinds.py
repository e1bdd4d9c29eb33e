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


class HttpSandbox(StrictModel):
    """A service that speaks SandboxFusion's API."""

    kind: Literal["http"] = "http"
    url: str = Field(pattern=r"^https?://")
    """Where it is, without `/run_code`."""
    concurrent: int = Field(8, ge=1)
    """Most programs that each verifier process has there at once."""

    def open(self) -> Sandbox:
        from actors.sandbox.remote import RemoteSandbox

        return RemoteSandbox(self.url)


AnySandbox = Annotated[Annotated[NamespaceSandbox | NoSandbox | HttpSandbox, Field(discriminator="kind")], BY_NAME]
