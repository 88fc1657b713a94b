"""The microVM: what a guest boots with."""
