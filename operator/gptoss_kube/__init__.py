"""One Kubernetes client for operator, gateway and command line.

``client`` sends, ``errors`` types what comes back, ``watch`` keeps a copy of a collection, ``events`` tells
people what happened, ``credentials`` logs in, ``resources`` names the kinds.
"""
