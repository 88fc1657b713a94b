"""The pure plan: what a specification leads to, as a flat list of kernel operations."""
