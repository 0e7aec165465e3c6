"""The hot inner loops of compiled x86-64 code, and what in them goes to memory that should stay in registers.

A hot inner loop is every instruction from the target of a backward jump to that jump, inside one function, with no
shorter such loop within, that holds at least one instruction of those that do the counting.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.native.core_build import call

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t(.*)$")
JUMP = re.compile(r"(?:bnd |notrack )*(?:j[a-z]+|loop[a-z]*) +([0-9a-f]+)\b")
FRAME_POINTER = re.compile(r"mov +%rsp,%rbp")
IMPLICIT_STACK = re.compile(r"(push|pop|call|enter|leave)[lqw]?\b")
READS_ONLY = re.compile(r"(cs |data16 )*(nop|cmp|test|prefetch)")  # though their last operand may be in memory


@dataclass(frozen=True)
class Loop:
    function: str
    address: int
    body: tuple[str, ...]
    framed: bool  # %rbp holds the frame of this function, and no number

    def memory_traffic(self) -> list[str]:
        """What reaches the stack (through %rsp, a frame in %rbp, a push or a call) or writes to memory at all."""
        stack = re.compile(r"\(%rsp|\(%rbp|,%rbp[,)]" if self.framed else r"\(%rsp")
        return [
            text
            for text in self.body
            if stack.search(text) or IMPLICIT_STACK.match(text) or (writes_memory(text) and not READS_ONLY.match(text))
        ]


def writes_memory(text: str) -> bool:
    """Whether the last operand, which AT&T syntax writes to, is in memory."""
    _, _, operands = text.partition(" ")
    return re.split(r",(?![^(]*\))", operands)[-1].find("(") >= 0


def functions(object_file: Path) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """Each function's demangled name and its instructions with their addresses."""
    name, instructions = "", list[tuple[int, str]]()
    for line in call("objdump", "-d", "-C", "--no-show-raw-insn", object_file).splitlines():
        if header := FUNCTION.match(line):
            yield name, instructions
            name, instructions = header[1], []
        elif found := INSTRUCTION.match(line):
            instructions.append((int(found[1], 16), re.split("[#<]", found[2])[0].strip()))
    yield name, instructions


def hot_loops(object_file: Path, counting: str) -> list[Loop]:
    """The inner loops with an instruction that `counting`, a regular expression, matches at its start."""
    loops = []
    for name, instructions in functions(object_file):
        addresses = [address for address, _ in instructions]
        spans = []
        for last, (address, text) in enumerate(instructions):
            jump = JUMP.match(text)
            if jump and addresses[0] <= int(jump[1], 16) <= address:
                spans.append((bisect_left(addresses, int(jump[1], 16)), last))
        framed = any(FRAME_POINTER.match(text) for _, text in instructions)
        for first, last in spans:
            if any((a, b) != (first, last) and first <= a and b <= last for a, b in spans):
                continue
            body = tuple(text for _, text in instructions[first : last + 1])
            if any(re.match(counting, text) for text in body):
                loops.append(Loop(name, addresses[first], body, framed))
    return loops
