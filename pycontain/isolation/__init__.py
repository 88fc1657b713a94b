"""The isolation comparison: what each kind of isolation holds, and what it costs, on the host where it runs.

From the ground up: `model` (what is measured, in words and units) · `world` (a throw-away host with decoys) ·
`levels` (how a program is run in each kind of isolation) · the measures (`outcomes`, `surface`, `cost`,
`interference`) · `runner` and `results` · `report` and `compare`. docs/isolation.md has the method.
"""
