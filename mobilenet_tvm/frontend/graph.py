"""What the steps of cleaning share: who reads what, and what nothing reads any more."""

from __future__ import annotations

import onnx


def tensors_read(node: onnx.NodeProto) -> list[str]:
    """Tensors that a node reads, in its subgraphs too."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            names += [name for inner in graph.node for name in tensors_read(inner)]
            names += [o.name for o in graph.output]
    return names


def drop_unused_initializers(graph: onnx.GraphProto) -> None:
    """Remove weights that nothing reads."""
    used = {name for node in graph.node for name in tensors_read(node)} | {
        o.name for o in graph.output
    }
    kept = [t for t in graph.initializer if t.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def drop_unused_nodes(graph: onnx.GraphProto) -> None:
    """Remove nodes that nothing reads, and those that only they read."""
    read = {o.name for o in graph.output}
    kept = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            read.update(tensors_read(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
