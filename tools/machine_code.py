"""Machine code of kernels as cuobjdump prints it: instructions, and the loops that they form."""
import re
from collections import Counter
from dataclasses import dataclass, field

INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]+)\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")
# What ends a basic block, beside branches: nothing behind it runs unless it is jumped to.
ENDS = {"EXIT", "RET", "BRX", "JMX", "KILL"}


@dataclass
class Instruction:
    address: int
    predicated: bool
    name: str  # as in LDG.E.128
    target: int | None  # of a branch


@dataclass
class Loop:
    """A natural loop: what its branches back to `head` can reach without leaving it."""
    head: int
    addresses: set
    inner: list = field(default_factory=list)  # loops right inside, in the order of their addresses
    names: Counter = field(default_factory=Counter)  # instructions, those of inner loops included

    def cost(self, trips=(), prefix=""):
        """Instructions of one pass, where the inner loops make so many passes each (one, if not told). Only those whose
        names begin with `prefix`, if there is one."""

        def total(names):
            return sum(n for name, n in names.items() if name.startswith(prefix))

        own = total(self.names) - sum(total(loop.names) for loop in self.inner)
        padded = [*trips, *[1] * len(self.inner)]
        return own + sum(passes * loop.cost(prefix=prefix) for passes, loop in zip(padded, self.inner))


def instructions(lines):
    """The instructions of each (kernel, architecture) in a listing of cuobjdump -sass."""
    out, architecture, kernel = {}, None, None
    for line in lines:
        if match := re.match(r"\s*arch = (\S+)", line):
            architecture, kernel = match[1], None
        elif match := re.match(r"\s*(?:\.target|code for)\s+(sm_\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            kernel = match[1]
        elif kernel is not None and (match := INSTRUCTION.match(line)):
            address, predicate, name, operands = match.groups()
            target = TARGET.search(operands) if name.split(".")[0] in ("BRA", "CALL") else None
            # Only warps whose lanes have come apart take BRA.DIV, and come back behind it.
            if target and name.startswith(("BRA.DIV", "CALL")):
                target = None
            out.setdefault((kernel, architecture), []).append(
                Instruction(int(address, 16), bool(predicate), name, int(target[1], 16) if target else None)
            )
    return out


def ptx_instructions(text):
    """The same of each kernel in a PTX file. Branches and products have the names that machine code has for them."""
    out = {}
    for entry in re.split(r"\.entry\s+", re.sub(r"//[^\n]*|\.loc\s[^\n]*", "", text))[1:]:
        kernel, body = re.match(r"[\w$]+", entry)[0], entry[entry.index("{") + 1 :]
        labels, code, address = {}, [], 0
        for statement in re.split(r";|(?<=:)\s", body):
            words = statement.lstrip("{} \t\n").split()
            if not words or words[0].startswith("."):
                continue
            if words[0].endswith(":"):
                labels[words[0][:-1]] = address
                continue
            predicated = words[0].startswith("@")
            name, *operands = words[1:] if predicated else words
            first = name.split(".")[0]
            target = operands[-1] if first == "bra" else None
            name = {"bra": "BRA", "ret": "RET", "exit": "EXIT", "mma": f"HMMA.{name}"}.get(first, name)
            code.append(Instruction(address, predicated, name, target))
            address += 1
        code.append(Instruction(address, False, "EXIT", None))
        for one in code:
            one.target = labels.get(one.target)
        out[kernel] = code
    return out


def blocks_of(code):
    """Basic blocks as (first, last + 1) places in the code, and the blocks that each goes on to."""
    place = {one.address: i for i, one in enumerate(code)}
    starts = {0}
    for i, one in enumerate(code):
        if one.target is not None:
            starts |= {place[one.target], i + 1}
        elif one.name.split(".")[0] in ENDS:
            starts.add(i + 1)
    starts = sorted(start for start in starts if start < len(code))
    blocks = list(zip(starts, [*starts[1:], len(code)]))
    number = {start: i for i, (start, _) in enumerate(blocks)}
    onward = []
    for i, (_, end) in enumerate(blocks):
        last, next_blocks = code[end - 1], []
        if last.target is not None:
            next_blocks.append(number[place[last.target]])
        # A branch whose warp decides as one (BRA.U) is conditional too.
        conditional = last.predicated or last.name.startswith("BRA.U")
        falls = last.target is None and last.name.split(".")[0] not in ENDS
        if (falls or conditional) and i + 1 < len(blocks):
            next_blocks.append(i + 1)
        onward.append(next_blocks)
    return blocks, onward


def loops(code):
    """The outermost loops of a kernel; a branch to itself at the end, which pads the code, is none."""
    blocks, onward = blocks_of(code)
    # What only warps that have come apart run is not reached, and belongs to no loop.
    reached, open_blocks = set(), [0]
    while open_blocks:
        block = open_blocks.pop()
        if block not in reached:
            reached.add(block)
            open_blocks += onward[block]
    before = [[] for _ in blocks]
    for i in reached:
        for target in onward[i]:
            before[target].append(i)
    bodies = {}
    for i in sorted(reached):
        for head in onward[i]:
            if head > i or (head == i and blocks[i][1] - blocks[i][0] == 1):
                continue
            body, open_blocks = bodies.setdefault(head, {head}), [i]
            while open_blocks:
                block = open_blocks.pop()
                if block not in body:
                    body.add(block)
                    open_blocks += before[block]
    found = []
    for head, body in bodies.items():
        places = [i for block in body for i in range(*blocks[block])]
        names = Counter(code[i].name for i in places if not code[i].name.startswith("NOP"))
        found.append(Loop(code[blocks[head][0]].address, {code[i].address for i in places}, names=names))
    found.sort(key=lambda loop: len(loop.addresses))
    outermost = []
    for i, loop in enumerate(found):
        around = next((other for other in found[i + 1 :] if loop.addresses < other.addresses), None)
        (around.inner if around else outermost).append(loop)
    for loop in found:
        loop.inner.sort(key=lambda inner: inner.head)
    return sorted(outermost, key=lambda loop: loop.head)


def flat(outermost, around=None):
    """Every loop, each with the one around it."""
    for loop in outermost:
        yield loop, around
        yield from flat(loop.inner, loop)
