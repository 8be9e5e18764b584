"""What every substrate can do. The Ray Serve substrate shares one cluster between deployments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gptoss_api.deployment import GptOssDeployment
from gptoss_operator.keys import DeploymentKey, Key
from gptoss_operator.plan.applications import Wish
from gptoss_operator.plan.observation import ApplicationView, Hardware


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a look at a substrate brought.

    Attributes:
        changed: deployments whose view is another than before.
        look_again: seconds until the next look without news, None if there is nothing to look at.
        wrote: something was written.
        trouble: reason and message of a problem of the whole substrate.
    """

    changed: frozenset[DeploymentKey]
    look_again: float | None
    wrote: bool = False
    trouble: tuple[str, str] | None = None


class Substrate(Protocol):
    """A place for replicas, worked on by one worker at a time."""

    def key(self, deployment: DeploymentKey) -> Key:
        """Return the key under which what a deployment wants is brought about."""
        ...

    def ask(self, key: DeploymentKey, wish: Wish) -> None:
        """Remember what a deployment wants."""
        ...

    def asked(self, key: DeploymentKey) -> Wish | None:
        """Return what it wants, None if it was never planned by this process."""
        ...

    def forget(self, key: DeploymentKey) -> bool:
        """The deployment is gone: what it had may go too. False if it was not known."""
        ...

    def view(self, key: DeploymentKey) -> ApplicationView:
        """Return what was last seen of a deployment's application."""
        ...

    def hardware(self, deployment: GptOssDeployment) -> Hardware | None:
        """Return the accelerators that a deployment may run on, None if they were not looked at yet."""
        ...

    async def reconcile(self, key: Key, *, complete: Callable[[], bool]) -> Outcome:
        """Look, and bring about what is wanted.

        ``complete`` tells whether every deployment placed here has asked; it walks all of them.
        """
        ...

    async def close(self) -> None:
        """End what runs beside reconciles."""
        ...
