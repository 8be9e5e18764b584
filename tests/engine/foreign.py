"""Somebody else's Serve application on the same Ray cluster: it answers with its process id."""

import os

from ray import serve


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
class Foreign:
    async def __call__(self, request: object) -> str:
        return str(os.getpid())


app = Foreign.bind()
