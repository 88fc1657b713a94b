"""Images: references, registries, the content store, layers and root filesystems."""
