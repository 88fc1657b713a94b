"""What an isolation costs: everything of the group ``cost``, from a start to a web server."""

from __future__ import annotations

from pycontain.isolation import cost_files, cost_kernel, cost_memory, cost_network, cost_start, workloads

MEASURES = (
    *cost_start.MEASURES,
    *cost_kernel.MEASURES,
    *cost_files.MEASURES,
    *cost_network.MEASURES,
    *cost_memory.MEASURES,
    *workloads.MEASURES,
)
