# SIGKILL at random moments: what has its name is whole, and the same command ends with the same bytes.
command=("$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 8 --shard-rows 4 --dtype f32 --out)
"${command[@]}" whole
for trial in $(seq 20); do
    "${command[@]}" out &
    sleep "0.0$((RANDOM % 6))"
    kill -9 $! 2>/dev/null || true
    wait $! || true
done
"${command[@]}" out
for shard in whole/pairs-*; do cmp "$shard" "out/${shard#whole/}"; done
