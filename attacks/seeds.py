"""Writes 40 pairs of 32 values as safetensors, without any package."""
import json
import random
import struct
import sys

rows, dim = 40, 32
random.seed(1)
values = [struct.pack(f"<{rows * dim}f", *(random.gauss(0, 1) for _ in range(rows * dim))) for _ in range(2)]
size = rows * dim * 4
entry = {
    name: {"dtype": "F32", "shape": [rows, dim], "data_offsets": [i * size, (i + 1) * size]}
    for i, name in enumerate(("chosen", "rejected"))
}
header = json.dumps(entry).encode()
with open(sys.argv[1], "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header + b"".join(values))
