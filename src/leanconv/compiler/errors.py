"""What the compiler says when it cannot lower a network."""

from __future__ import annotations

import re
from typing import Any

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in \S+\n\s*([^\n]+)')


class CompileError(ValueError):
    """A network that cannot be compiled; one line that names the operator, the layer, the reason and a way out."""


def layer_of(node: Any) -> str:
    """The path of the module that `node` (of an exported graph) came from, '' at the top level."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


def where(node: Any) -> str:
    """`node` for people: operator, name, layer with its class, source line, as far as they are known."""
    parts = [f"operator {node.target} (node {node.name}"]
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if stack:
        path, module = stack[-1]
        kind = module if isinstance(module, str) else module.__name__
        parts.append(f"layer {path or '(the model itself)'} [{kind.rpartition('.')[2]}]")
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [f for f in frames if "/torch/" not in f[0]]
    if own:
        file, line, text = own[-1]
        parts.append(f"{file}:{line} `{text.strip()}`")
    return ", ".join(parts) + ")"


def refuse(node: Any, reason: str, way_out: str) -> CompileError:
    return CompileError(f"cannot compile {where(node)}: {reason}; {way_out}")
