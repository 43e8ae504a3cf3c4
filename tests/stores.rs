//! Objects of a store by URL, in a store that lies in memory: what holds of them without a network. What a line between
//! does is in python/tests/test_stores.py.
#![cfg(feature = "cloud")]

use std::fs;
use std::path::{Path, PathBuf};

use lensmith::data::{AtomicFile, Object, is_url, read_small};
use lensmith::{
    Checkpoint, DeviceChoice, Engine, Error, PairOptions, PairSet, Part, Recipe, RowSet, SynthJob,
    SynthesisOptions, Vae, VaeTraining, VerifyOptions, file_exists, keep_file, merge_manifests, write_pairs,
};

const DIM: usize = 32;
const SEEDS: usize = 40;
/// Pairs of a seed and of a shard, for six shards.
const FOLD: u64 = 3;
const ROWS: u64 = 20;

fn engine() -> Engine {
    Engine::builder().device(DeviceChoice::Cpu).threads(2).build().expect("a CPU")
}

fn seeds(path: &Path) -> PairSet {
    let values = |s: u32| -> Vec<f32> {
        (0..SEEDS * DIM).map(|i| ((i as u32 ^ s).wrapping_mul(2_654_435_761) >> 8) as f32 / 2e7).collect()
    };
    let (chosen, rejected) = (values(1), values(99));
    let rows = [&chosen, &rejected].map(|side| RowSet::from_f32(side, DIM).expect("whole rows"));
    write_pairs(path, [&rows[0], &rows[1]], None).expect("a shard");
    PairSet::open(&[path.display().to_string()], &PairOptions::default()).expect("pairs")
}

/// A recipe whose files lie at `place`, a folder or a URL.
fn recipe(engine: &Engine, place: &Path) -> (Recipe, PairSet, Vae) {
    let (pairs, model) = (place.join("seeds.safetensors"), place.join("vae.safetensors"));
    let set = seeds(&pairs);
    let options = VaeTraining { epochs: 1, ..VaeTraining::default() };
    engine
        .train_vae(&set, &options, &mut |_, _| ())
        .expect("a VAE")
        .vae
        .save(&model, &Default::default())
        .expect("saves");
    let options = SynthesisOptions { pairs_per_seed: Some(FOLD), ..SynthesisOptions::default() };
    Recipe::new(&[pairs.display().to_string()], &PairOptions::default(), &model, &options).expect("a recipe")
}

fn write(engine: &Engine, made: &(Recipe, PairSet, Vae), out: &Path, part: Part) -> lensmith::Result<u64> {
    let job = SynthJob { shard_rows: Some(ROWS), part, ..SynthJob::new(&made.0, out) };
    engine.synthesize(&job, &made.1, &made.2, &mut |_| ()).map(|summary| summary.resumed)
}

fn outputs() -> Vec<String> {
    let shards = (0..SEEDS as u64 * FOLD / ROWS).map(|i| format!("pairs-{i:05}.safetensors"));
    shards.chain(["manifest.json".to_string()]).collect()
}

fn remove(path: &Path) {
    Object::at(path).and_then(|object| object.remove()).expect("removes");
}

fn bytes(path: PathBuf) -> Vec<u8> {
    read_small(&path, "file", 1 << 30).expect("a file")
}

#[test]
fn a_run_in_a_store_has_the_bytes_of_one_on_disk() {
    let (engine, folder) = (engine(), tempfile::tempdir().expect("a folder"));
    let disk = folder.path().join("out");
    write(&engine, &recipe(&engine, folder.path()), &disk, Part::WHOLE).expect("writes");

    let made = recipe(&engine, Path::new("memory://whole/in"));
    let out = Path::new("memory://whole/out");
    assert_eq!(write(&engine, &made, out, Part::WHOLE).expect("writes"), 0);
    for name in outputs() {
        assert!(bytes(out.join(&name)) == bytes(disk.join(&name)), "{name}");
    }
    assert_eq!(write(&engine, &made, out, Part::WHOLE).expect("finds all"), SEEDS as u64 * FOLD);
    let verified = engine.verify(out, &VerifyOptions::default(), &mut |_| ()).expect("in order");
    assert_eq!((verified.shards, verified.missing), (6, None));

    // A shard that is gone is made again, and one of another length is not taken for whole.
    remove(&out.join("pairs-00004.safetensors"));
    fs::write(folder.path().join("short"), b"short").expect("a file");
    keep_file(&folder.path().join("short"), &out.join("pairs-00001.safetensors"), false).expect("writes");
    let error = write(&engine, &made, out, Part::WHOLE).expect_err("it is no shard");
    assert!(error.to_string().contains("pairs-00001.safetensors"), "{error}");
    remove(&out.join("pairs-00001.safetensors"));
    assert_eq!(write(&engine, &made, out, Part::WHOLE).expect("goes on"), SEEDS as u64 * FOLD - 2 * ROWS);
    for name in outputs() {
        assert!(bytes(out.join(&name)) == bytes(disk.join(&name)), "{name}");
    }
}

#[test]
fn parts_are_joined_and_sources_are_patterns() {
    let engine = engine();
    let made = recipe(&engine, Path::new("memory://parts/in"));
    let out = Path::new("memory://parts/out");
    for index in [1, 0] {
        write(&engine, &made, out, Part { index, count: 2 }).expect("writes");
    }
    let open = |source: &str| PairSet::open(&[source.to_string()], &PairOptions::default());
    assert_eq!(open("memory://parts/out").expect("both parts are there").len() as u64, SEEDS as u64 * FOLD);
    assert_eq!(merge_manifests(out).expect("joins").parts, 2);
    assert_eq!(open("memory://parts/out/").expect("a folder").len() as u64, SEEDS as u64 * FOLD);
    assert_eq!(open("memory://parts/out/pairs-0000[0-2].*").expect("a pattern").len() as u64, 3 * ROWS);
    assert!(matches!(open("memory://parts/out/none-*"), Err(Error::TooFew { .. })));
    let error = open("memory://parts/none.safetensors").expect_err("nothing is there");
    assert!(error.to_string().contains("memory://parts/none.safetensors"), "{error}");
    // An object is not overwritten by what is made of it.
    let from_shards = (
        Recipe::new(
            &["memory://parts/out/pairs-00000.safetensors".to_string()],
            &PairOptions::default(),
            Path::new("memory://parts/in/vae.safetensors"),
            &SynthesisOptions { pairs_per_seed: Some(FOLD), ..SynthesisOptions::default() },
        )
        .expect("a recipe")
        .0,
        open("memory://parts/out/pairs-00000.safetensors").expect("pairs"),
        Vae::load(Path::new("memory://parts/in/vae.safetensors")).expect("a VAE").0,
    );
    let job = SynthJob { overwrite: true, ..SynthJob::new(&from_shards.0, out) };
    let error =
        engine.synthesize(&job, &from_shards.1, &from_shards.2, &mut |_| ()).expect_err("its own input");
    assert!(error.to_string().contains("from which it is made"), "{error}");
    assert_eq!(open("memory://parts/out").expect("nothing is lost").len() as u64, SEEDS as u64 * FOLD);
}

#[test]
fn what_is_replaced_meanwhile_is_an_error() {
    let url = Path::new("memory://changing/seeds.safetensors");
    let set = seeds(url);
    let rows = |set: &PairSet| set.rows(lensmith::Side::Chosen, 0..4).map(|rows| rows.view().rows());
    assert_eq!(rows(&set).expect("rows"), 4);
    set.require_unchanged().expect("as it was");
    // The same bytes once more are another object.
    let again = seeds(url);
    assert!(matches!(rows(&set), Err(Error::Changed { .. })));
    assert!(matches!(set.require_unchanged(), Err(Error::Changed { .. })));
    again.require_unchanged().expect("as it was");
    remove(url);
    assert!(matches!(again.require_unchanged(), Err(Error::Changed { .. })));
}

#[test]
fn a_recipe_knows_the_versions_of_its_seeds() {
    let (engine, place) = (engine(), Path::new("memory://versions"));
    let (recipe, ..) = recipe(&engine, place);
    let (path, seeds) = (place.join("recipe.json"), place.join("seeds.safetensors"));
    recipe.write(&path).expect("writes");
    let open = || Recipe::read(&path)?.open(&path, Default::default(), &Default::default());
    assert_eq!(recipe.seeds.versions.as_ref().map(Vec::len), Some(1));
    open().expect("as it was");
    // The same bytes under another version are read against their checksum.
    let copy = tempfile::tempdir().expect("a folder");
    let local = copy.path().join("seeds.safetensors");
    keep_file(&seeds, &local, false).expect("copies");
    remove(&seeds);
    keep_file(&local, &seeds, false).expect("copies");
    open().expect("the same bytes");
    let mut other = fs::read(&local).expect("a file");
    *other.last_mut().expect("bytes") ^= 1;
    fs::write(&local, other).expect("a file");
    keep_file(&local, &seeds, false).expect("copies");
    let error = open().expect_err("other bytes");
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
}

#[test]
fn manifests_are_replaced_on_condition() {
    let object = Object::at(Path::new("memory://condition/manifest.json")).expect("a URL");
    let first = object.replace(b"one", None).expect("nothing is there");
    assert!(matches!(object.replace(b"two", None), Err(Error::Busy { .. })));
    // An answer that got lost: the same bytes come again.
    assert_eq!(object.replace(b"one", None).expect("they are there"), first);
    let second = object.replace(b"two", Some(&first)).expect("nobody else wrote");
    assert!(matches!(object.replace(b"three", Some(&first)), Err(Error::Busy { .. })));
    assert_eq!(object.replace(b"two", Some(&first)).expect("they are there"), second);
    object.replace(b"three", Some(&second)).expect("nobody else wrote");
}

#[test]
fn long_objects_go_up_in_parts_and_come_down_in_ranges() {
    use std::os::unix::fs::FileExt;
    let url = Path::new("memory://long/object");
    let content: Vec<u8> =
        (0..(35 << 20) + 7u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let out = AtomicFile::create(url).expect("starts");
    out.file().write_all_at(&content, 0).expect("writes");
    assert!(!file_exists(url).expect("a store"), "half of it is seen");
    out.commit().expect("uploads");
    assert!(bytes(url.into()) == content);
    let copy = tempfile::tempdir().expect("a folder");
    keep_file(url, &copy.path().join("copy"), true).expect("copies");
    assert!(fs::read(copy.path().join("copy")).expect("a file") == content);
    keep_file(url, &copy.path().join("copy"), true).expect("the same is there");
    fs::write(copy.path().join("copy"), b"other").expect("a file");
    assert!(matches!(keep_file(url, &copy.path().join("copy"), true), Err(Error::Exists { .. })));
    // One that is given up leaves nothing.
    drop(AtomicFile::create(Path::new("memory://long/other")).expect("starts"));
    assert!(!file_exists(Path::new("memory://long/other")).expect("a store"));
}

#[test]
fn urls_that_name_nothing_are_refused() {
    assert!(is_url(Path::new("s3://bucket/key")) && !is_url(Path::new("/s3/bucket")));
    for url in ["s3://", "s3:///key", "gs://?"] {
        let error = file_exists(Path::new(url)).expect_err("no bucket");
        assert!(error.to_string().contains("expected the URL of an object"), "{url}: {error}");
    }
}
