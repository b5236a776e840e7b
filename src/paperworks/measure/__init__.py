"""The project's only counters: parameters, latency, memory."""
