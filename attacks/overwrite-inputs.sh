# --overwrite where the output is what it is made from, by name or by a link.
before="$(md5sum seeds.safetensors)"
ln seeds.safetensors hard.safetensors
for out in seeds.safetensors hard.safetensors; do
    refused "$LENSMITH" train-vae seeds.safetensors --hidden 16 --vae-epochs 1 --out "$out" --overwrite
    [[ "$(md5sum seeds.safetensors)" == "$before" ]]
done
"$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 2 --output latents --out latents
refused "$LENSMITH" materialize latents --out latents --overwrite
"$LENSMITH" verify latents
