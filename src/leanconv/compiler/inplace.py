"""In-place operators: harmless unless some other node still shows the memory that they write."""

from __future__ import annotations

from torch import fx

from leanconv.compiler.errors import refuse

# Composite operators whose result may share memory with their input although their schema does not say so.
MAY_ALIAS = {
    "aten.reshape.default",
    "aten.flatten.using_ints",
    "aten.contiguous.default",
    "aten.dropout.default",
    "aten.feature_dropout.default",
    "aten.alpha_dropout.default",
    "aten.to.dtype",
    "aten.to.device",
    "aten.to.dtype_layout",
    "aten.to.other",
    "aten.view_as.default",
    "aten.unflatten.int",
    "aten.chunk.default",
    "aten.narrow.int",
    "aten.adaptive_avg_pool2d.default",
}


def check_in_place(graph: fx.Graph) -> None:
    """Refuse a write through a view, or into a parameter or input: it is invisible in the graph's data flow."""
    position = {node: i for i, node in enumerate(graph.nodes)}
    family: dict[fx.Node, list[fx.Node]] = {}  # nodes that may share memory, one shared list each
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        sources = [a for a in node.args if isinstance(a, fx.Node)]
        written = []
        if schema is not None and schema.is_mutable:
            written = [
                a
                for a, argument in zip(node.args, schema.arguments, strict=False)
                if isinstance(a, fx.Node) and argument.alias_info is not None and argument.alias_info.is_write
            ]
        for target in written:
            shared = family.get(target, [target])
            if any(n.op in ("placeholder", "get_attr") for n in shared):
                raise refuse(
                    node,
                    "it writes into an input, a parameter or a buffer",
                    "use the operator that returns a new tensor",
                )
            for other in shared:
                late = [u for u in other.users if u is not node and position[u] > position[node]]
                if late:
                    raise refuse(
                        node,
                        f"it writes in place into memory that {other.name} still shows to {late[0].name}",
                        "use the operator without the underscore (inplace=False)",
                    )
        aliases = str(node.target) in MAY_ALIAS or (
            schema is not None and any(r.alias_info is not None for r in schema.returns)
        )
        if aliases and sources:
            members = family.setdefault(sources[0], [sources[0]])
            members.append(node)
            family[node] = members
