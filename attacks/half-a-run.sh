# One part of two, read as if it were the whole.
"$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 4 --shard-rows 16 --part 0/2 --out out
refused "$LENSMITH" train-reward out --reward-hidden 16 --epochs 1 --out r.safetensors
refused "$LENSMITH" export out --out pairs.parquet
"$LENSMITH" train-reward out --reward-hidden 16 --epochs 1 --out r.safetensors --allow-partial
