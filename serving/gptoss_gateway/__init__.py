"""The always-on front door: keys, catalogue, hold and wake, streaming proxy, metering, demand reports.

A request's way through: ``app`` (path, key, body) → ``catalogue`` (which model) → ``admission``
(ready: straight on · asleep: hold, report demand, probe) → ``proxy`` (to the engine and back).
"""
