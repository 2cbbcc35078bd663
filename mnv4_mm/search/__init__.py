"""Search for a net of a supernet by its score on held-out images and its cost."""
