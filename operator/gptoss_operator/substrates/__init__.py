"""Where replicas run. Each substrate turns wishes into something real and reports what it sees."""
