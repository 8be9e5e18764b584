"""The operator: watch → cache → queue of keys → observe → plan → execute → status."""
