"""What every verb shares: the frame around it, its output, its option groups."""

from mobilenet_tvm.cli.frame import Output, run_verb

__all__ = ["Output", "run_verb"]
