"""Weights that are what they are signed as: signatures, policy, and pulls of verified bytes.

No Kubernetes and no Ray: the operator decides trust with it, nodes pull with it, people sign with it.
"""
