"""What KubeRay is given for one deployment: pure, and byte for byte the same from equal input.

``workload`` is the input, ``render`` the entrance, ``pods`` and ``network`` the parts. Engines keep
compile caches and KubeRay compares hashes, so nothing here depends on order, time or chance.
"""
