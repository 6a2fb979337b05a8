"""Where a module runs when it is not this process: on boards, over TVM's RPC, and emulated."""
