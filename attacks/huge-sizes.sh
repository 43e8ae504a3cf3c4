# Sizes that no memory holds: an error before the work, not an abort.
refused "$LENSMITH" demo --simulated --dim 65536 --seeds 99999999999
refused "$LENSMITH" train-vae seeds.safetensors --out new.safetensors --hidden 16777216 --latent 16777216
refused "$LENSMITH" bench --no-limits --only score --rows 4 --dim 65536 --reward-hidden 16777216
[[ ! -e new.safetensors ]]
# Memory that the system refuses ends a run with exit code 1, not with a signal.
(ulimit -v 120000; status=0; "$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 8 --out out || status=$?
    [[ $status -le 2 ]])
"$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 8 --out out
