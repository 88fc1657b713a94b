"""The engine joins runtime, images and network into containers with names."""
