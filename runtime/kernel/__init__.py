"""Thin access to the kernel: system calls, host facts, cgroups."""
