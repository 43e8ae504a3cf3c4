# A recipe from elsewhere that names files of its reader: only what lies around it, or where one works, is taken unasked.
mkdir -p private download/run work
cp seeds.safetensors private/
"$LENSMITH" synth private/seeds.safetensors --vae vae.safetensors --fold 2 --out made
cp made/*.json made/*.safetensors download/run/
cp vae.safetensors download/
sed -i "s#\"[^\"]*/vae.safetensors\"#\"../vae.safetensors\"#" download/run/recipe.json
cd work
refused "$LENSMITH" verify ../download/run
refused "$LENSMITH" materialize ../download/run/recipe.json --out taken
[[ ! -e taken ]]
# A link leads out as well.
ln -s "$PWD/../private/seeds.safetensors" ../download/link.safetensors
sed -i "s#\"[^\"]*/seeds.safetensors\"#\"../link.safetensors\"#" ../download/run/recipe.json
refused "$LENSMITH" verify ../download/run
"$LENSMITH" verify ../download/run --allow-outside
