# Two parts of different settings that start at the same moment.
for trial in 1 2 3 4 5; do
    for part in 0 1; do
        "$LENSMITH" synth seeds.safetensors --vae vae.safetensors --fold 4 --shard-rows 16 --part "$part/2" --seed "$part" \
            --out "out$trial" && touch "won$trial.$part" &
    done
    wait
    [[ "$(ls won$trial.* | wc -l)" == 1 ]]
done
