# Parquet of zeros that takes a thousandth of what it unpacks to: refused before it is unpacked.
python3 - <<'PYTHON'
import json, struct
rows, columns = 30, 1 << 20
header = json.dumps({"embeddings": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, 4 * rows * columns]}})
with open("zeros.safetensors", "wb") as file:
    file.write(struct.pack("<Q", len(header)) + header.encode())
    file.truncate(8 + len(header) + 4 * rows * columns)
PYTHON
"$LENSMITH" export zeros.safetensors --out zeros.parquet --row-group-rows 100
rm zeros.safetensors
[[ $(stat -c %s zeros.parquet) -lt 100000 ]]
(ulimit -v 1000000; refused "$LENSMITH" import zeros.parquet --plain --out taken)
