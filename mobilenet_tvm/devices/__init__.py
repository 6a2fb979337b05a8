"""Where an artifact runs when not on this machine's own CPU."""
