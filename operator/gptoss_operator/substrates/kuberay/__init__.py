"""Replicas that KubeRay runs: one RayService for each deployment.

``substrate`` does what is decided, ``follow`` keeps copies of RayServices and their pods, and the pure
parts decide: ``seen`` reads a RayService, ``steps`` says what to write next, ``pods`` why pods don't start.
"""
