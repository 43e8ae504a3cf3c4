# Manifests and recipes that are pipes, or lead to a file without an end.
"$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 2 --out out
for name in manifest.json recipe.json; do
    mv "out/$name" good
    for kind in "mkfifo" "ln -s /dev/zero"; do
        $kind "out/$name"
        for command in "verify out" "inspect out" "materialize out --out again"; do
            status=0
            (ulimit -v 4000000; timeout 10 "$LENSMITH" $command) || status=$?
            [[ $status -le 2 ]]
        done
        rm "out/$name"
    done
    mv good "out/$name"
done
