"""The OCI runtime: specification, plan, executors and state."""
