# --overwrite in a folder with files that are called like outputs and are not.
mkdir out && echo '{"name": "an app"}' >out/manifest.json && echo mine >out/pairs-00000.safetensors
refused "$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 2 --out out --overwrite
[[ "$(cat out/pairs-00000.safetensors)" == mine ]]
