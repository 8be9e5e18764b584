"""Where this node's Ray keeps its logs: a folder that each process of the node can write, and that goes with it."""

from pathlib import Path

from ray._private import worker


def ray_logs() -> Path | None:
    """Return the folder as Ray Serve finds it for its own logs; None outside of Ray."""
    node = worker._global_node  # noqa: SLF001 - there is no public way
    return Path(node.get_logs_dir_path()) if node is not None else None


def replicas_ray_logs() -> Path:
    """Return the folder, in a replica.

    Raises:
        RuntimeError: this is no process of Ray's.
    """
    folder = ray_logs()
    if folder is None:
        raise RuntimeError("this process belongs to no Ray node: the engine runs in a Ray Serve replica only")
    return folder
