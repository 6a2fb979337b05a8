"""Where a module runs when it is not this process: boards over TVM's RPC, and what serves there."""
