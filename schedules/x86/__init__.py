"""x86: one channel-blocked layout throughout, and templates that keep their sums in registers.

TVM's stock templates tune the channel block with the schedule, so neighbours disagree and a
``layout_transform`` stands between them; and they copy the input into a padded buffer first.
Here the block follows from the channel count alone (``layout.channel_block``), and padding is
part of the load.
"""

from mobilenet_tvm.schedules.x86.strategy import register, use

__all__ = ["register", "use"]
