"""Side by side with the peers: ``python -m bench``. What is timed, and how, is in docs/performance.md."""
