"""Records + Relay -> artifact: one self-contained ``.so`` and its ``.manifest.json``."""
