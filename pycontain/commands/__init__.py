"""The command line's parts: one definition, its parser, its help and pages, and the verbs."""
