"""The contract: custom resources, names and the documents that cross from one room to another. No I/O.

Read in this order: ``deployment`` (what users write), ``deployment_status`` and ``conditions`` (what
they read), ``policy`` (what administrators write), ``engine`` (specification + profile → engine
settings), ``application`` (what Ray's nodes are told), ``report`` (what gateways tell the operator).
"""
