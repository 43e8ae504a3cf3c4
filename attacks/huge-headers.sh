# A header of many megabytes, and one that claims 2^63 bytes.
python3 - <<'P'
import struct
names = ",".join('"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(300_000))
header = ("{" + names + "}").encode()
open("many.safetensors", "wb").write(struct.pack("<Q", len(header)) + header)
open("claims.safetensors", "wb").write(struct.pack("<Q", 2**63) + b"{}")
P
for name in many claims; do
    status=0
    (ulimit -v 2000000; timeout 10 "$LENSMITH" inspect "$name.safetensors") || status=$?
    [[ $status == 1 ]]
done
