# A recipe whose sizes are not those of its files.
"$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 2 --output recipe --out out
rm out/manifest.json
for dim in 0 31 2305843009213693952 4611686018427387904; do
    sed "s/\"dim\": 32/\"dim\": $dim/" out/recipe.json >lie.json
    status=0
    "$LENSMITH" materialize lie.json --out made || status=$?
    [[ $status == 1 && ! -e made ]]
done
