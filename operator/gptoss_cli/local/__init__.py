"""The whole product on one machine: a real API server, object store, Ray, operator and gateway.

`command.py` is what a person calls. `stack.py` is the order in which things start and stop,
`control_plane.py` and `object_store.py` are the two servers that Kubernetes and S3 are here,
`assets.py` builds their programs, and `programs.py` with `supervisor.py` own every process.
Everything written lands in one cache folder (`folders.py`).
"""
