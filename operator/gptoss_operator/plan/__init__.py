"""Pure decisions: what is observed goes in, a frozen plan comes out. The clock is an argument.

``lifecycle`` says whether an engine is wanted, ``status`` says so to people, ``applications`` turns
the wishes of all deployments into one configuration of a Ray cluster, ``demand`` reads gateways.

What always holds:

* planning again after a plan was executed changes nothing;
* a restart of the operator changes no replica count: what runs goes on, what sleeps sleeps on;
* unknown is not zero: without news from a cluster or a gateway nothing is removed or put to sleep;
* nothing that serves is deleted, unless the roll-out strategy is Recreate.
"""
