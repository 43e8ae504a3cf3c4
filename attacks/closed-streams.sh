# Nobody reads standard error; standard output is full.
"$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 4 --out a --progress-every 0 2>&-
"$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 4 --out b --progress-every 0 2>/dev/full
"$LENSMITH" verify a && "$LENSMITH" verify b
refused "$LENSMITH" inspect seeds.safetensors >/dev/full
