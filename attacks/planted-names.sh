# A link under a temporary or lock name in a shared folder: a write would go to the file that it leads to.
echo treasure >treasure
for name in .vae.safetensors.tmp .manifest.json.tmp .recipe.json.tmp .pairs-00000.safetensors.tmp .synth.lock; do
    for link in "ln -s" "ln"; do
        rm -rf out && mkdir out && $link "$PWD/treasure" "out/$name"
        "$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 2 --out out || true
        "$LENSMITH" train-vae seeds.safetensors --hidden 16 --vae-epochs 1 --out out/vae.safetensors || true
        [[ "$(cat treasure)" == treasure ]]
    done
done
