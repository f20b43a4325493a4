"""Every way to get a Model. With dictionaries, the only room that imports model libraries."""
